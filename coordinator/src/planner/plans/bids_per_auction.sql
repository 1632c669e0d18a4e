-- A window in FROM, a condition on a column that nothing else needs.
CREATE TABLE bids (
  auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, url VARCHAR, ts TIMESTAMP(3), extra VARCHAR,
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (connector = 'topic', topic = 'bids', format = 'json');
CREATE TABLE counts WITH (connector = 'topic', topic = 'counts', format = 'json');
INSERT INTO counts
SELECT window_start, window_end, auction, count(*) AS bids, sum(price) AS total
FROM TUMBLE(bids, ts, INTERVAL '10' SECOND)
WHERE channel <> 'robot'
GROUP BY window_start, window_end, auction;
