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
  window_start TIMESTAMP(3), window_end TIMESTAMP(3), country VARCHAR, orders BIGINT, revenue DOUBLE,
  smallest DOUBLE, largest DOUBLE, mean DOUBLE, items BIGINT, all_paid BOOLEAN, spread DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO results
SELECT window_start, window_end, country, count(*), sum(amount), min(amount), max(amount), avg(amount),
       sum(items), bool_and(paid), stddev(amount)
FROM TUMBLE(orders, placed_at, INTERVAL '5' MINUTE)
GROUP BY window_start, window_end, country;
