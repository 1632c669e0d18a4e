-- A generator's own columns, fewer splits than tasks are asked for, windows given out row by row.
CREATE TABLE sensors (
  sensor BIGINT, temperature DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts
) WITH (connector = 'generator', generator = 'sensors', splits = 2, rows = 1000);
CREATE TABLE seen WITH (connector = 'console');
INSERT INTO seen
SELECT sensor, round(temperature) AS warm, window_start, date_trunc('hour', window_end) AS hour
FROM TABLE(TUMBLE(TABLE sensors, DESCRIPTOR(ts), INTERVAL '1' MINUTE)) WHERE temperature > 20.5;
