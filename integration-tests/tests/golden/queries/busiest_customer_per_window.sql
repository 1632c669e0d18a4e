-- Each window's results are aggregated in the same window again.
CREATE TABLE orders (
  customer VARCHAR,
  amount DOUBLE,
  placed_at TIMESTAMP(3),
  WATERMARK FOR placed_at AS placed_at - INTERVAL '1' SECOND
) WITH (
  connector = 'single_file',
  path = '$input_dir/orders.json',
  format = 'json',
  type = 'source'
);
CREATE TABLE results (
  window_start TIMESTAMP(3), window_end TIMESTAMP(3), customers BIGINT, orders BIGINT, most BIGINT, spent DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
CREATE VIEW per_customer AS
SELECT window_start, window_end, customer, count(*) AS orders, sum(amount) AS spent
FROM TUMBLE(orders, placed_at, INTERVAL '2' MINUTE)
GROUP BY window_start, window_end, customer;
INSERT INTO results
SELECT window_start, window_end, count(*), sum(orders), max(orders), max(spent)
FROM per_customer
GROUP BY window_start, window_end;
