//! Visitors of a shop: sessions of clicks, some of which end in a purchase and some in an abandoned cart.
//!
//! Many sessions go on at once. Rows are dealt in turn over lanes; a lane's clicks are cut into stretches
//! of sixteen, a stretch into two sessions, each with a plan drawn for it. Clicks arrive up to two seconds
//! late, so event times are slightly out of order.

use arrow::array::ArrayRef;

use super::draws::{Draws, rounded};
use super::stream::{doubles, integers, strings, timestamps};

const STRETCH: u64 = 16;
const SHORTEST_SESSION: u64 = 3;
const USERS: u64 = 20_000;
const PRODUCTS: u64 = 1_000;
const MOST_LATE_MS: u64 = 2_000;
/// A visitor clicks about this often.
const SECONDS_BETWEEN_CLICKS: u64 = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Clickstream {
    pub(super) seed: u64,
    pub(super) events_per_second: u64,
}

/// Where a click stands in its session.
#[derive(Clone, Copy, Debug)]
struct Click {
    session: u64,
    step: u64,
    steps: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Look,
    Abandon,
    Buy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    View,
    AddToCart,
    Remove,
    Checkout,
    Purchase,
}

mod purpose {
    pub(super) const PHASE: u64 = 31;
    pub(super) const CUT: u64 = 32;
    pub(super) const PLAN: u64 = 33;
    pub(super) const USER: u64 = 34;
    pub(super) const PRODUCT: u64 = 35;
    pub(super) const PRICE: u64 = 36;
    pub(super) const QUANTITY: u64 = 37;
    pub(super) const LATE: u64 = 38;
}

impl Clickstream {
    fn click(&self, row: u64) -> Click {
        let lanes = (self.events_per_second * SECONDS_BETWEEN_CLICKS).max(16);
        let lane = row % lanes;
        // Lanes start at different places of their stretches, so that sessions do not all begin at once.
        let place = row / lanes + Draws::new(self.seed, purpose::PHASE, lane).below(STRETCH);
        let stretch = place / STRETCH * lanes + lane;
        let at = place % STRETCH;
        let cuts = STRETCH - 2 * SHORTEST_SESSION + 1;
        let cut = SHORTEST_SESSION + Draws::new(self.seed, purpose::CUT, stretch).below(cuts);
        if at < cut {
            Click {
                session: stretch * 2,
                step: at,
                steps: cut,
            }
        } else {
            Click {
                session: stretch * 2 + 1,
                step: at - cut,
                steps: STRETCH - cut,
            }
        }
    }

    fn action(&self, click: Click) -> Action {
        let plan = match Draws::new(self.seed, purpose::PLAN, click.session).below(20) {
            0..7 => Plan::Look,
            7..15 => Plan::Abandon,
            _ => Plan::Buy,
        };
        let left = click.steps - click.step - 1;
        match (plan, left, click.step % 4) {
            (Plan::Look, ..) => Action::View,
            (Plan::Buy, 0, _) => Action::Purchase,
            (Plan::Buy, 1, _) => Action::Checkout,
            (Plan::Buy, ..) if left == 2 => Action::AddToCart,
            (_, _, 0 | 2) => Action::View,
            (_, _, 1) => Action::AddToCart,
            // Second thoughts: the product added two clicks before goes again, but never the last one.
            (Plan::Abandon, _, _) if click.step > 4 => Action::Remove,
            (_, _, _) => Action::View,
        }
    }

    /// Products go by pairs of clicks: what was looked at is what goes into the cart.
    fn product(&self, click: Click) -> u64 {
        let pair = match self.action(click) {
            Action::Remove => click.step / 2 - 1,
            _ => click.step / 2,
        };
        let mut draws = Draws::new(self.seed, purpose::PRODUCT, click.session * STRETCH + pair);
        // The product of two draws favours small numbers: some products are popular.
        1 + draws.below(draws.clone().below(PRODUCTS) + 1)
    }

    pub(super) fn column(&self, name: &str, rows: &[u64]) -> Option<ArrayRef> {
        let array = match name {
            "session" => integers(rows, |row| 1 + self.click(row).session),
            "user_id" => integers(rows, |row| {
                1 + Draws::new(self.seed, purpose::USER, self.click(row).session).below(USERS)
            }),
            "action" => strings(rows, |row, out| {
                out.push_str(match self.action(self.click(row)) {
                    Action::View => "view",
                    Action::AddToCart => "add_to_cart",
                    Action::Remove => "remove_from_cart",
                    Action::Checkout => "checkout",
                    Action::Purchase => "purchase",
                });
            }),
            "page" => strings(rows, |row, out| {
                let click = self.click(row);
                match self.action(click) {
                    Action::View => *out += &format!("/products/{}", self.product(click)),
                    Action::AddToCart | Action::Remove => out.push_str("/cart"),
                    Action::Checkout => out.push_str("/checkout"),
                    Action::Purchase => out.push_str("/thank-you"),
                }
            }),
            "product" => integers(rows, |row| self.product(self.click(row))),
            "price" => doubles(rows, |row| {
                let product = self.product(self.click(row));
                let price = Draws::new(self.seed, purpose::PRICE, product).unit();
                rounded(2.0 + 400.0 * price * price, 100.0)
            }),
            "quantity" => integers(rows, |row| {
                let click = self.click(row);
                let pair = click.session * STRETCH + click.step / 2;
                let mut draws = Draws::new(self.seed, purpose::QUANTITY, pair);
                if draws.one_in(4) {
                    2 + draws.below(3)
                } else {
                    1
                }
            }),
            "ts" => timestamps(rows, |row| {
                let late = Draws::new(self.seed, purpose::LATE, row).below(MOST_LATE_MS);
                super::event_time(row, self.events_per_second)
                    - i64::try_from(late).expect("at most two seconds")
            }),
            _ => return None,
        };
        Some(array)
    }
}
