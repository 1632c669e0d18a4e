//! How many bytes a second each client may have: whether its next request is taken, or when to come again.
//!
//! What a client is given it owes, and every moment pays some of it back, at the rate. Its next request is taken while
//! it owes less than a burst, whatever its size: so a large one needs no more patience than a small one, and
//! what it has beyond the burst delays what comes after it.
//!
//! ```text
//! owes   burst ─────────x───x─         x: refused
//!              ┌╲   ┌╲      ┌╲
//!            ┌╲┘ ╲  │ ╲  ┌──┘ ╲        ↑ taken, ↘ at the rate
//!       0 ───┘    ╲─┘  ╲─┘     ╲──▶
//! ```

use std::collections::BTreeMap;

use common::limits::{MAX_QUOTA_CLIENTS, QUOTA_BURST};
use common::time::{Span, Tick};

use super::client::ClientId;

/// What each client owes, where each has the same rate.
#[derive(Clone, Debug)]
pub struct ByteRate {
    bytes_per_second: u64,
    accounts: BTreeMap<ClientId, Account>,
    /// Of all those together for whom there is no room.
    others: Account,
    /// When those who owe nothing were forgotten last.
    swept: Tick,
    clients_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "who has to wait is not served"]
pub enum Answer {
    Allowed,
    /// Nothing is taken; after this it would be, if nothing else is meanwhile.
    Wait(Span),
}

/// In thousandths of a byte: what is paid back in a millisecond is a whole number of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Account {
    owed: u64,
    at: Tick,
}

const PARTS: u64 = 1_000;

impl ByteRate {
    pub fn new(bytes_per_second: u64) -> ByteRate {
        ByteRate::remembering(bytes_per_second, MAX_QUOTA_CLIENTS)
    }

    fn remembering(bytes_per_second: u64, clients_max: usize) -> ByteRate {
        assert!(bytes_per_second > 0, "who may have nothing waits for ever");
        ByteRate {
            bytes_per_second,
            accounts: BTreeMap::new(),
            others: Account::default(),
            swept: Tick::default(),
            clients_max,
        }
    }

    /// A client asks for so many bytes, which count if they are allowed. Zero: whether any would be.
    pub fn handle(&mut self, now: Tick, client: &ClientId, bytes: u64) -> Answer {
        let answer = self.look(now, client);
        if answer == Answer::Allowed {
            self.charge(now, client, bytes);
        }
        answer
    }

    /// A client was given bytes of which it was not known before how many they would be.
    pub fn charge(&mut self, now: Tick, client: &ClientId, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let rate = self.bytes_per_second;
        let account = self.account(now, client);
        account.pay(now, rate);
        account.owed = account.owed.saturating_add(bytes.saturating_mul(PARTS));
    }

    fn look(&self, now: Tick, client: &ClientId) -> Answer {
        let mut account = *self.accounts.get(client).unwrap_or(&self.others);
        account.pay(now, self.bytes_per_second);
        let burst = self.bytes_per_second.saturating_mul(QUOTA_BURST.0);
        match account.owed.checked_sub(burst) {
            None => Answer::Allowed,
            Some(beyond) => Answer::Wait(Span((beyond + 1).div_ceil(self.bytes_per_second))),
        }
    }

    /// One that is new owes what the others do: it may be one of them.
    fn account(&mut self, now: Tick, client: &ClientId) -> &mut Account {
        if !self.accounts.contains_key(client) {
            self.sweep(now);
            if self.accounts.len() < self.clients_max {
                self.accounts.insert(client.clone(), self.others);
            }
        }
        self.accounts.get_mut(client).unwrap_or(&mut self.others)
    }

    /// Forgets who owes nothing: nobody can tell it from one who was never here.
    fn sweep(&mut self, now: Tick) {
        // Were it done for each of many that are new, each would cost as much as there are.
        let full = self.accounts.len() >= self.clients_max;
        if full && now.since(self.swept) >= QUOTA_BURST {
            self.swept = now;
            let rate = self.bytes_per_second;
            self.accounts.retain(|_, account| {
                account.pay(now, rate);
                account.owed > 0
            });
        }
    }
}

impl Account {
    fn pay(&mut self, now: Tick, bytes_per_second: u64) {
        let paid = bytes_per_second.saturating_mul(now.since(self.at).0);
        self.owed = self.owed.saturating_sub(paid);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const RATE: u64 = 1_000;
    /// What may be had at once.
    const BURST: u64 = RATE * QUOTA_BURST.0 / 1_000;

    fn client(number: usize) -> ClientId {
        ClientId::named(&format!("client-{number}")).unwrap()
    }

    #[test]
    fn who_has_had_its_burst_waits_until_a_byte_of_it_is_paid_back() {
        let mut rate = ByteRate::new(RATE);
        let mut asked = |now: u64, bytes| rate.handle(Tick(now), &client(1), bytes);
        assert_eq!(asked(0, BURST - 1), Answer::Allowed);
        assert_eq!(asked(0, 1), Answer::Allowed);
        assert_eq!(asked(0, 1), Answer::Wait(Span(1)));
        assert_eq!(asked(1, 1), Answer::Allowed);
        assert_eq!(asked(1, 0), Answer::Wait(Span(1)));
    }

    #[test]
    fn a_request_larger_than_the_burst_is_taken_and_paid_before_the_next() {
        let mut rate = ByteRate::new(RATE);
        assert_eq!(rate.handle(Tick(0), &client(1), 60 * RATE), Answer::Allowed);
        let Answer::Wait(span) = rate.handle(Tick(0), &client(1), 1) else {
            panic!("it owes a minute");
        };
        assert_eq!(span, Span(60_001 - QUOTA_BURST.0));
        let early = Tick(0).plus(Span(span.0 - 1));
        assert_eq!(rate.handle(early, &client(1), 1), Answer::Wait(Span(1)));
        let then = Tick(0).plus(span);
        assert_eq!(rate.handle(then, &client(1), 60 * RATE), Answer::Allowed);
    }

    #[test]
    fn what_was_given_without_asking_is_owed_as_well() {
        let mut rate = ByteRate::new(RATE);
        rate.charge(Tick(5), &client(1), 2 * BURST);
        assert_ne!(rate.handle(Tick(5), &client(1), 0), Answer::Allowed);
        assert_eq!(rate.handle(Tick(5), &client(2), 0), Answer::Allowed);
    }

    #[test]
    fn strangers_beyond_the_bound_share_what_one_may_have() {
        let mut rate = ByteRate::remembering(RATE, 3);
        for number in 0..3 {
            assert_eq!(rate.handle(Tick(0), &client(number), 1), Answer::Allowed);
        }
        let given = (3..1_000_u64).filter(|number| {
            let stranger = client(usize::try_from(*number).unwrap());
            rate.handle(Tick(0), &stranger, 100) == Answer::Allowed
        });
        assert_eq!(given.count() as u64 * 100, BURST);
        assert_eq!(rate.handle(Tick(0), &client(0), 1), Answer::Allowed);
        assert_ne!(rate.handle(Tick(0), &client(3), 1), Answer::Allowed);
        // All have paid: the three are forgotten, and there is room for three of the others.
        let later = Tick(QUOTA_BURST.0);
        for number in 3..6 {
            assert_eq!(rate.handle(later, &client(number), BURST), Answer::Allowed);
        }
        assert_eq!(rate.accounts.len(), 3);
    }

    #[test]
    fn the_largest_numbers_are_counted_too() {
        let mut rate = ByteRate::new(u64::MAX);
        assert_eq!(rate.handle(Tick(0), &client(1), u64::MAX), Answer::Allowed);
        let mut rate = ByteRate::new(1);
        assert_eq!(rate.handle(Tick(0), &client(1), u64::MAX), Answer::Allowed);
        assert_ne!(rate.handle(Tick(1), &client(1), 1), Answer::Allowed);
        assert_eq!(rate.handle(Tick(u64::MAX), &client(1), 1), Answer::Allowed);
    }

    /// Who asks, how many milliseconds after the one before, for how much.
    fn requests(clients: usize) -> impl Strategy<Value = Vec<(usize, u64, u64)>> {
        vec((0..clients, 0..400_u64, 0..3 * BURST), 1..300)
    }

    proptest! {
        /// Between any two requests that were taken, a client had no more than rate × time and a burst before the
        /// later one; and waiting as long as it is told is enough for a request of any size.
        #[test]
        fn nobody_has_more_than_its_rate_and_a_burst(
            requests in requests(8),
            room in 1..10_usize,
        ) {
            let mut rate = ByteRate::remembering(RATE, room);
            let mut now = Tick(0);
            let mut taken: Vec<Vec<(Tick, u64)>> = vec![Vec::new(); 8];
            for (number, later, bytes) in requests {
                now = now.plus(Span(later));
                match rate.handle(now, &client(number), bytes) {
                    Answer::Allowed => taken[number].push((now, bytes)),
                    Answer::Wait(span) => {
                        let mut patient = rate.clone();
                        let early = now.plus(Span(span.0 - 1));
                        prop_assert!(patient.handle(early, &client(number), bytes) != Answer::Allowed);
                        let then = now.plus(span);
                        prop_assert_eq!(patient.handle(then, &client(number), bytes), Answer::Allowed);
                    }
                }
                prop_assert!(rate.accounts.len() <= room);
            }
            for taken in taken {
                for (first, (from, _)) in taken.iter().enumerate() {
                    let mut had = 0;
                    for (to, bytes) in &taken[first..] {
                        prop_assert!(had <= RATE * to.since(*from).0 / 1_000 + BURST);
                        had += bytes;
                    }
                }
            }
        }

        /// As long as there is room for all, each is answered as if it were alone.
        #[test]
        fn nobody_is_slowed_by_another(requests in requests(5)) {
            let mut together = ByteRate::remembering(RATE, 5);
            let mut alone = vec![ByteRate::remembering(RATE, 1); 5];
            let mut now = Tick(0);
            for (number, later, bytes) in requests {
                now = now.plus(Span(later));
                prop_assert_eq!(
                    together.handle(now, &client(number), bytes),
                    alone[number].handle(now, &client(number), bytes)
                );
            }
        }
    }
}
