-- A window as a column of its own, grouped by its position; fields of it selected outside.
CREATE TABLE rides (
  timestamp TIMESTAMP, driver BIGINT, kind TEXT, place TEXT
) WITH (connector = 'single_file', path = 'rides.json', format = 'json', type = 'source', event_time_field = 'timestamp');
CREATE TABLE per_hour (kind TEXT, hour TIMESTAMP, until TIMESTAMP, count BIGINT)
WITH (connector = 'single_file', path = 'per_hour.json', format = 'json', type = 'sink');
INSERT INTO per_hour
SELECT kind, window.start AS hour, window.end, count FROM (
  SELECT kind, HOP(INTERVAL '30 minutes', INTERVAL '1 hour') AS window, count(*) AS count
  FROM rides GROUP BY 1, 2
);
