//! Payments by card. Now and then a card is stolen: a burst of large payments far from its owner's home.
//!
//! Of every 2,000 payments some 20, close together, are of one stolen card.

use arrow::array::ArrayRef;

use super::draws::{Draws, rounded};
use super::stream::{booleans, doubles, integers, strings, timestamps};

const CARDS: u64 = 10_000;
const MERCHANTS: u64 = 500;
/// One card is stolen among so many payments, and used for every second of so many.
const PAYMENTS_PER_THEFT: u64 = 2_000;
const BURST: u64 = 40;

const CATEGORIES: [(&str, f64); 8] = [
    ("groceries", 45.0),
    ("fuel", 60.0),
    ("restaurant", 35.0),
    ("online", 80.0),
    ("travel", 320.0),
    ("health", 55.0),
    ("entertainment", 30.0),
    ("electronics", 240.0),
];

/// A country and a place in it.
const PLACES: [(&str, f64, f64); 8] = [
    ("DE", 50.1, 8.7),
    ("FR", 48.9, 2.4),
    ("US", 40.7, -74.0),
    ("GB", 51.5, -0.1),
    ("IN", 19.1, 72.9),
    ("BR", -23.6, -46.6),
    ("JP", 35.7, 139.7),
    ("AU", -33.9, 151.2),
];

#[derive(Clone, Copy, Debug)]
pub(super) struct Payments {
    pub(super) seed: u64,
    pub(super) events_per_second: u64,
}

mod purpose {
    pub(super) const THEFT: u64 = 51;
    pub(super) const CARD: u64 = 52;
    pub(super) const HOME: u64 = 53;
    pub(super) const MERCHANT: u64 = 54;
    pub(super) const CATEGORY: u64 = 55;
    pub(super) const AMOUNT: u64 = 56;
    pub(super) const PLACE: u64 = 57;
}

impl Payments {
    /// The theft this payment is part of, and its card.
    fn theft(&self, row: u64) -> Option<(u64, u64)> {
        let theft = row / PAYMENTS_PER_THEFT;
        let mut draws = Draws::new(self.seed, purpose::THEFT, theft);
        let start = draws.below(PAYMENTS_PER_THEFT - BURST);
        let card = draws.below(CARDS);
        let at = (row % PAYMENTS_PER_THEFT).checked_sub(start)?;
        (at < BURST && at % 2 == 0).then_some((theft, card))
    }

    fn card(&self, row: u64) -> u64 {
        match self.theft(row) {
            Some((_, card)) => card,
            None => Draws::new(self.seed, purpose::CARD, row).below(CARDS),
        }
    }

    fn category(&self, row: u64) -> (&'static str, f64) {
        let merchant = self.merchant(row);
        Draws::new(self.seed, purpose::CATEGORY, merchant).pick(&CATEGORIES)
    }

    fn merchant(&self, row: u64) -> u64 {
        Draws::new(self.seed, purpose::MERCHANT, row).below(MERCHANTS)
    }

    /// Where the payment is made: near home, or somewhere else altogether.
    fn place(&self, row: u64) -> (&'static str, f64, f64) {
        let home = Draws::new(self.seed, purpose::HOME, self.card(row)).below(8);
        let place = match self.theft(row) {
            Some((theft, _)) => {
                let away = 1 + Draws::new(self.seed, purpose::PLACE, theft).below(7);
                (home + away) % 8
            }
            None => home,
        };
        PLACES[usize::try_from(place).expect("one of eight")]
    }

    pub(super) fn column(&self, name: &str, rows: &[u64]) -> Option<ArrayRef> {
        let near = |row: u64, purpose: u64| Draws::new(self.seed, purpose, row).noise() * 0.5;
        let array = match name {
            "payment" => integers(rows, |row| 1 + row),
            "card" => integers(rows, |row| 4_000_000_000_000_000 + self.card(row)),
            "merchant" => strings(rows, |row, out| {
                *out += &format!("merchant-{:03}", self.merchant(row));
            }),
            "category" => strings(rows, |row, out| out.push_str(self.category(row).0)),
            "country" => strings(rows, |row, out| out.push_str(self.place(row).0)),
            "amount" => doubles(rows, |row| {
                let usual = self.category(row).1;
                let unit = Draws::new(self.seed, purpose::AMOUNT, row).unit();
                let factor = match self.theft(row) {
                    Some(_) => 5.0 + 10.0 * unit,
                    None => 0.1 + 1.8 * unit,
                };
                rounded(usual * factor, 100.0)
            }),
            "latitude" => doubles(rows, |row| {
                rounded(self.place(row).1 + near(row, purpose::PLACE), 10_000.0)
            }),
            "longitude" => doubles(rows, |row| {
                rounded(self.place(row).2 + near(row, purpose::HOME), 10_000.0)
            }),
            "is_fraud" => booleans(rows, |row| self.theft(row).is_some()),
            "ts" => timestamps(rows, |row| super::event_time(row, self.events_per_second)),
            _ => return None,
        };
        Some(array)
    }
}
