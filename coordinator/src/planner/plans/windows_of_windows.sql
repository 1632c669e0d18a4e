-- Results of windows, aggregated again in the same windows: tumbling ones, and sliding ones twice over.
CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH (connector = 'topic', topic = 'bids');
CREATE TABLE busiest WITH (connector = 'topic', topic = 'busiest');
CREATE TABLE hourly WITH (connector = 'topic', topic = 'hourly');
CREATE TABLE sliding WITH (connector = 'topic', topic = 'sliding');
CREATE VIEW per_auction AS
SELECT window_start, window_end, auction, count(*) AS bids
FROM TUMBLE(bids, ts, INTERVAL '10' SECOND) GROUP BY window_start, window_end, auction;
CREATE VIEW most AS
SELECT window_start AS since, window_end AS until, max(bids) AS most
FROM per_auction WHERE bids > 1 GROUP BY window_start, window_end;
INSERT INTO busiest SELECT since, until, most FROM most;
INSERT INTO hourly SELECT window_end, sum(most) AS total
FROM TUMBLE(most, until, INTERVAL '1' HOUR) GROUP BY window_start, window_end;
INSERT INTO sliding
SELECT window_start, window_end, sum(bids) AS bids, max(most) AS most FROM (
  SELECT window_start, window_end, auction, sum(bids) AS bids, max(bids) AS most FROM (
    SELECT window_start, window_end, auction, bidder, count(*) AS bids
    FROM HOP(bids, ts, INTERVAL '2' SECOND, INTERVAL '10' SECOND)
    GROUP BY window_start, window_end, auction, bidder
  ) GROUP BY window_start, window_end, auction
) GROUP BY window_start, window_end;
