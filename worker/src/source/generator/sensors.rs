//! Readings of a hundred sensors: temperatures follow the day and the year, humidity runs against them, and
//! now and then one sensor drifts away for twenty readings.

use arrow::array::ArrayRef;

use super::draws::{Draws, rounded, wave};
use super::stream::{booleans, doubles, integers, strings, timestamps};

const SENSORS: u64 = 100;
const SENSORS_PER_SITE: u64 = 10;
/// A sensor drifts once in so many readings, for so many.
const READINGS_PER_DRIFT: u64 = 1_000;
const DRIFT: u64 = 20;
const DAY_MS: f64 = 86_400_000.0;
const YEAR_MS: f64 = 365.25 * DAY_MS;

#[derive(Clone, Copy, Debug)]
pub(super) struct Sensors {
    pub(super) seed: u64,
    pub(super) events_per_second: u64,
}

mod purpose {
    pub(super) const SITE: u64 = 71;
    pub(super) const DRIFT: u64 = 72;
    pub(super) const TEMPERATURE: u64 = 73;
    pub(super) const HUMIDITY: u64 = 74;
}

impl Sensors {
    fn sensor(row: u64) -> u64 {
        row % SENSORS
    }

    fn is_anomaly(&self, row: u64) -> bool {
        let reading = row / SENSORS;
        let drift = reading / READINGS_PER_DRIFT * SENSORS + Self::sensor(row);
        let start = Draws::new(self.seed, purpose::DRIFT, drift).below(READINGS_PER_DRIFT - DRIFT);
        (start..start + DRIFT).contains(&(reading % READINGS_PER_DRIFT))
    }

    /// From −1, the coldest hour of the coldest day, to 1.
    fn season(&self, row: u64) -> f64 {
        let time = super::event_time(row, self.events_per_second);
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds are exact to the year 287,396"
        )]
        let time = time as f64;
        0.6 * wave(time / YEAR_MS - 0.25) + 0.4 * wave(time / DAY_MS - 0.375)
    }

    pub(super) fn column(&self, name: &str, rows: &[u64]) -> Option<ArrayRef> {
        let array = match name {
            "sensor" => integers(rows, |row| 1 + Self::sensor(row)),
            "site" => strings(rows, |row, out| {
                *out += &format!("site-{}", Self::sensor(row) / SENSORS_PER_SITE);
            }),
            "temperature" => doubles(rows, |row| {
                let site = Self::sensor(row) / SENSORS_PER_SITE;
                let climate = 8.0 + 10.0 * Draws::new(self.seed, purpose::SITE, site).unit();
                let noise = Draws::new(self.seed, purpose::TEMPERATURE, row).noise();
                let drift = if self.is_anomaly(row) { 25.0 } else { 0.0 };
                rounded(climate + 14.0 * self.season(row) + noise + drift, 100.0)
            }),
            "humidity" => doubles(rows, |row| {
                let noise = Draws::new(self.seed, purpose::HUMIDITY, row).noise();
                rounded(60.0 - 20.0 * self.season(row) + 5.0 * noise, 100.0)
            }),
            "is_anomaly" => booleans(rows, |row| self.is_anomaly(row)),
            "ts" => timestamps(rows, |row| super::event_time(row, self.events_per_second)),
            _ => return None,
        };
        Some(array)
    }
}
