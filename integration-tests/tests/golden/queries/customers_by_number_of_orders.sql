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
  orders BIGINT PRIMARY KEY, customers BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
INSERT INTO results
SELECT orders, count(*) AS customers
FROM (SELECT customer, count(*) AS orders FROM orders GROUP BY customer)
GROUP BY orders;
