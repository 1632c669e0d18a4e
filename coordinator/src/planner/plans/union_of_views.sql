-- Views, several inserts into one table, a source read twice.
CREATE TABLE bids (auction BIGINT, price BIGINT, channel VARCHAR) WITH (connector = topic, topic = bids);
CREATE TABLE all_prices (price DOUBLE, origin TEXT) WITH (connector = 'files', path = 'out/', format = 'csv');
CREATE VIEW cheap AS SELECT price, channel FROM bids WHERE price < 10;
CREATE VIEW dear (cost, how) AS (SELECT price * 2, upper(channel) FROM bids WHERE price > 1000 AND channel LIKE 'a%');
INSERT INTO all_prices SELECT price, 'cheap' FROM cheap UNION ALL SELECT cost, how FROM dear;
INSERT INTO all_prices (origin, price) SELECT channel, auction FROM bids;
