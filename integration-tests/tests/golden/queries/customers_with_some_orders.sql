CREATE TABLE orders (
  id BIGINT NOT NULL,
  customer VARCHAR NOT NULL,
  country VARCHAR,
  amount DOUBLE,
  items INT,
  paid BOOLEAN,
  placed_at TIMESTAMP(3),
  WATERMARK FOR placed_at AS placed_at - INTERVAL '1' SECOND
) WITH (
  connector = 'single_file',
  path = '$input_dir/orders.json',
  format = 'json',
  type = 'source'
);
CREATE TABLE results (
  customer VARCHAR PRIMARY KEY, orders BIGINT, revenue DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
-- A customer appears with the twelfth order and disappears with the nineteenth.
INSERT INTO results
SELECT customer, count(*) AS orders, sum(amount) AS revenue
FROM orders
GROUP BY customer
HAVING count(*) BETWEEN 12 AND 18;
