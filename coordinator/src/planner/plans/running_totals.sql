-- A running aggregate with keys, conditions and expressions over it, into a topic by key.
CREATE TABLE bids (auction BIGINT, bidder INT UNSIGNED NOT NULL, price BIGINT, channel VARCHAR)
WITH (connector = 'topic', topic = 'bids', 'scan.bounded.mode' = 'latest');
CREATE TABLE totals (
  bidder BIGINT PRIMARY KEY, total BIGINT, auctions INT, large BIGINT, spread DOUBLE
) WITH (connector = 'topic', topic = 'totals', format = 'json');
INSERT INTO totals
SELECT bidder, sum(price) + 10, count(DISTINCT auction), count(*) FILTER (WHERE price > 1000),
       stddev(price) / avg(price)
FROM bids GROUP BY bidder HAVING count(*) > 3 AND max(price) < 1e6;
