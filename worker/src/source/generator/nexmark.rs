//! The auction house of the Nexmark benchmark: people, auctions and bids, as its published rules have them.
//!
//! Of 50 events one is a person, three are auctions and 46 are bids, in this order; event time runs evenly
//! over all of them, so the three streams fit together. Half of the bids go to the newest hundredth
//! auction, three of four come from the newest hundredth person, three of four auctions are that person's.

use arrow::array::ArrayRef;
use common::plan::connector::GeneratorKind;

use super::draws::{Draws, power_of_ten};
use super::stream::{integers, strings, timestamps};

pub(super) const EVENTS_PER_ROUND: u64 = 50;
const PERSONS: u64 = 1;
const AUCTIONS: u64 = 3;
const BIDS: u64 = EVENTS_PER_ROUND - PERSONS - AUCTIONS;

const FIRST_ID: u64 = 1_000;
/// Every so many people or auctions there is a new hot one.
const HOT_EVERY: u64 = 100;
/// How many of the last people still buy and sell, and of the last auctions still take bids.
const ACTIVE_PEOPLE: u64 = 1_000;
const OPEN_AUCTIONS: u64 = 100;
const FIRST_CATEGORY: u64 = 10;
const CATEGORIES: u64 = 5;
const CHANNELS: u64 = 10_000;

const FIRST_NAMES: [&str; 11] = [
    "Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter",
];
const LAST_NAMES: [&str; 9] = [
    "Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris",
];
const CITIES: [&str; 10] = [
    "Phoenix",
    "Los Angeles",
    "San Francisco",
    "Boise",
    "Portland",
    "Bend",
    "Redmond",
    "Seattle",
    "Kent",
    "Cheyenne",
];
const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];
const HOT_CHANNELS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];

/// One of the three streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nexmark {
    pub(super) kind: GeneratorKind,
    pub(super) seed: u64,
    pub(super) events_per_second: u64,
}

/// What a draw is for. The numbers only have to differ.
mod purpose {
    pub(super) const NAME: u64 = 1;
    pub(super) const EMAIL: u64 = 2;
    pub(super) const CARD: u64 = 3;
    pub(super) const CITY: u64 = 4;
    pub(super) const STATE: u64 = 5;
    pub(super) const PERSON_EXTRA: u64 = 6;
    pub(super) const ITEM: u64 = 7;
    pub(super) const DESCRIPTION: u64 = 8;
    pub(super) const INITIAL_BID: u64 = 9;
    pub(super) const RESERVE: u64 = 10;
    pub(super) const EXPIRES: u64 = 11;
    pub(super) const SELLER: u64 = 12;
    pub(super) const CATEGORY: u64 = 13;
    pub(super) const AUCTION_EXTRA: u64 = 14;
    pub(super) const AUCTION: u64 = 15;
    pub(super) const BIDDER: u64 = 16;
    pub(super) const PRICE: u64 = 17;
    pub(super) const CHANNEL: u64 = 18;
    pub(super) const URL: u64 = 19;
    pub(super) const BID_EXTRA: u64 = 20;
}

impl Nexmark {
    /// The rows of this stream among every round of events.
    pub(super) fn rows_per_round(kind: GeneratorKind) -> u64 {
        match kind {
            GeneratorKind::NexmarkPerson => PERSONS,
            GeneratorKind::NexmarkAuction => AUCTIONS,
            _ => BIDS,
        }
    }

    /// Which of all events a row of this stream is.
    fn event(&self, row: u64) -> u64 {
        let (count, first) = match self.kind {
            GeneratorKind::NexmarkPerson => (PERSONS, 0),
            GeneratorKind::NexmarkAuction => (AUCTIONS, PERSONS),
            _ => (BIDS, PERSONS + AUCTIONS),
        };
        row / count * EVENTS_PER_ROUND + first + row % count
    }

    fn time(&self, row: u64) -> i64 {
        super::event_time(self.event(row), self.events_per_second)
    }

    /// The values of a column in these rows.
    pub(super) fn column(&self, name: &str, rows: &[u64]) -> Option<ArrayRef> {
        let draws = |purpose: u64, row: u64| Draws::new(self.seed, purpose, row);
        let array = match (self.kind, name) {
            (GeneratorKind::NexmarkPerson | GeneratorKind::NexmarkAuction, "id") => {
                integers(rows, |row| FIRST_ID + row)
            }
            (_, "date_time") => timestamps(rows, |row| self.time(row)),
            (GeneratorKind::NexmarkPerson, "name") => strings(rows, |row, out| {
                let mut draws = draws(purpose::NAME, row);
                out.push_str(draws.pick(&FIRST_NAMES));
                out.push(' ');
                out.push_str(draws.pick(&LAST_NAMES));
            }),
            (GeneratorKind::NexmarkPerson, "email_address") => strings(rows, |row, out| {
                let mut draws = draws(purpose::EMAIL, row);
                draws.letters(3, 7, out);
                out.push('@');
                draws.letters(3, 5, out);
                out.push_str(".com");
            }),
            (GeneratorKind::NexmarkPerson, "credit_card") => strings(rows, |row, out| {
                let mut draws = draws(purpose::CARD, row);
                for group in 0..4 {
                    let space = if group == 0 { "" } else { " " };
                    *out += &format!("{space}{:04}", draws.below(10_000));
                }
            }),
            (GeneratorKind::NexmarkPerson, "city") => strings(rows, |row, out| {
                out.push_str(draws(purpose::CITY, row).pick(&CITIES));
            }),
            (GeneratorKind::NexmarkPerson, "state") => strings(rows, |row, out| {
                out.push_str(draws(purpose::STATE, row).pick(&STATES));
            }),
            (GeneratorKind::NexmarkPerson, "extra") => strings(rows, |row, out| {
                draws(purpose::PERSON_EXTRA, row).letters(20, 60, out);
            }),
            (GeneratorKind::NexmarkAuction, "item_name") => strings(rows, |row, out| {
                draws(purpose::ITEM, row).letters(5, 20, out);
            }),
            (GeneratorKind::NexmarkAuction, "description") => strings(rows, |row, out| {
                draws(purpose::DESCRIPTION, row).letters(40, 100, out);
            }),
            (GeneratorKind::NexmarkAuction, "initial_bid") => {
                integers(rows, |row| price(draws(purpose::INITIAL_BID, row)))
            }
            (GeneratorKind::NexmarkAuction, "reserve") => integers(rows, |row| {
                price(draws(purpose::INITIAL_BID, row)) + price(draws(purpose::RESERVE, row))
            }),
            (GeneratorKind::NexmarkAuction, "expires") => timestamps(rows, |row| {
                let open_for = 1 + draws(purpose::EXPIRES, row).below(20_000);
                self.time(row) + i64::try_from(open_for).expect("a few seconds")
            }),
            (GeneratorKind::NexmarkAuction, "seller") => integers(rows, |row| {
                person(draws(purpose::SELLER, row), self.event(row), 0)
            }),
            (GeneratorKind::NexmarkAuction, "category") => integers(rows, |row| {
                FIRST_CATEGORY + draws(purpose::CATEGORY, row).below(CATEGORIES)
            }),
            (GeneratorKind::NexmarkAuction, "extra") => strings(rows, |row, out| {
                draws(purpose::AUCTION_EXTRA, row).letters(20, 60, out);
            }),
            (GeneratorKind::NexmarkBid, "auction") => integers(rows, |row| {
                auction(draws(purpose::AUCTION, row), self.event(row))
            }),
            (GeneratorKind::NexmarkBid, "bidder") => integers(rows, |row| {
                person(draws(purpose::BIDDER, row), self.event(row), 1)
            }),
            (GeneratorKind::NexmarkBid, "price") => {
                integers(rows, |row| price(draws(purpose::PRICE, row)))
            }
            (GeneratorKind::NexmarkBid, "channel") => strings(rows, |row, out| {
                match channel(draws(purpose::CHANNEL, row)) {
                    Channel::Hot(name) => out.push_str(name),
                    Channel::Other(number) => *out += &format!("channel-{number}"),
                }
            }),
            (GeneratorKind::NexmarkBid, "url") => strings(rows, |row, out| {
                let mut draws = draws(purpose::URL, row);
                out.push_str("https://www.nexmark.com/");
                for separator in ["/", "/", "/item.htm?query=1"] {
                    draws.letters(3, 5, out);
                    out.push_str(separator);
                }
                if let Channel::Other(number) =
                    channel(Draws::new(self.seed, purpose::CHANNEL, row))
                {
                    // A channel is found in its address by some of the queries.
                    *out += &format!(
                        "&channel_id={}",
                        Draws::new(self.seed, purpose::URL, number).below(1 << 20)
                    );
                }
            }),
            (GeneratorKind::NexmarkBid, "extra") => strings(rows, |row, out| {
                draws(purpose::BID_EXTRA, row).letters(20, 50, out);
            }),
            _ => return None,
        };
        Some(array)
    }
}

enum Channel {
    Hot(&'static str),
    Other(u64),
}

fn channel(mut draws: Draws) -> Channel {
    if draws.one_in(2) {
        Channel::Hot(draws.pick(&HOT_CHANNELS))
    } else {
        Channel::Other(draws.below(CHANNELS))
    }
}

/// From 1 to a million, small ones as likely as large ones of the next power; in cents.
fn price(mut draws: Draws) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a price is positive and at most 10^8"
    )]
    let cents = (power_of_ten(draws.unit() * 6.0) * 100.0).round() as u64;
    cents
}

/// A seller or bidder of this event: mostly the hot one, else one of those who came last.
fn person(mut draws: Draws, event: u64, hot_offset: u64) -> u64 {
    let last = event / EVENTS_PER_ROUND;
    if !draws.one_in(4) {
        return FIRST_ID + last / HOT_EVERY * HOT_EVERY + hot_offset;
    }
    let active = (last + 1).min(ACTIVE_PEOPLE);
    FIRST_ID + last - draws.below(active)
}

/// The auction of a bid: in half of the cases the hot one, else one of those opened last.
fn auction(mut draws: Draws, event: u64) -> u64 {
    // A bid comes after its round's auctions, so there is always one.
    let last = event / EVENTS_PER_ROUND * AUCTIONS + AUCTIONS - 1;
    if draws.one_in(2) {
        return FIRST_ID + last / HOT_EVERY * HOT_EVERY;
    }
    let open = (last + 1).min(OPEN_AUCTIONS);
    FIRST_ID + last - draws.below(open)
}
