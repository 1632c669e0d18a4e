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
  id BIGINT, who VARCHAR, gross DOUBLE, size VARCHAR
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO results
SELECT id, upper(customer) || '/' || country AS who, amount * 1.25 AS gross,
       CASE WHEN items > 5 THEN 'large' WHEN items < 3 THEN 'small' ELSE 'medium' END AS size
FROM orders
WHERE paid AND amount * 1.25 >= 100 AND country IS NOT NULL;
