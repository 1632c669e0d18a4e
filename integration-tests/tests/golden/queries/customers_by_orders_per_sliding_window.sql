-- Overlapping windows whose size is no multiple of their slide, aggregated in themselves twice over.
CREATE TABLE orders (
  customer VARCHAR,
  placed_at TIMESTAMP(3),
  WATERMARK FOR placed_at AS placed_at - INTERVAL '1' SECOND
) WITH (
  connector = 'single_file',
  path = '$input_dir/orders.json',
  format = 'json',
  type = 'source'
);
CREATE TABLE results (
  window_start TIMESTAMP(3), window_end TIMESTAMP(3), kinds BIGINT, customers BIGINT, orders BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
CREATE VIEW per_customer AS
SELECT window_start, window_end, customer, count(*) AS orders
FROM HOP(orders, placed_at, INTERVAL '40' SECOND, INTERVAL '90' SECOND, INTERVAL '7' SECOND)
GROUP BY window_start, window_end, customer;
CREATE VIEW per_number AS
SELECT window_start, window_end, orders, count(*) AS customers
FROM per_customer
GROUP BY window_start, window_end, orders;
INSERT INTO results
SELECT window_start, window_end, count(*), sum(customers), sum(orders * customers)
FROM per_number
GROUP BY window_start, window_end;
