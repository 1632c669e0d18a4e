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
  window_start TIMESTAMP(3), kind VARCHAR, orders BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
CREATE VIEW notable AS
SELECT placed_at, 'dear' AS kind FROM orders WHERE amount > 400
UNION ALL
SELECT placed_at, 'many' AS kind FROM orders WHERE items >= 8;
INSERT INTO results
SELECT window_start, kind, count(*) AS orders
FROM TUMBLE(notable, placed_at, INTERVAL '5' MINUTE)
GROUP BY window_start, window_end, kind;
