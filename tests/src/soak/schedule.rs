//! What happens in a soak, drawn from a seed: the same seed gives the same events in the same order.
//!
//! Kinds are dealt like cards: each once, in random order, before any comes again. When exactly an event
//! falls is the machine's: the next one is drawn when the last one was proved harmless.

use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9`, and a start.
    Kill,
    /// The same, and again while it starts.
    KillTwice,
    /// `SIGTERM`, which cuts and ships a last time, and a start.
    Stop,
    /// `SIGSTOP` for a while.
    Freeze,
    /// The device of the diffs answers EIO.
    DiffEio,
    /// The same while the target takes nothing, and the page cache forgets what it holds.
    DiffLost,
    /// The device of the diffs takes seconds.
    DiffSlow,
    /// The file system of the diffs is full.
    DiffFull,
    /// Nothing can be made or removed on the target.
    TargetFrozen,
    /// The target is not where it was.
    TargetGone,
    /// The device of the target answers nothing.
    TargetStopped,
    /// The device of the target takes long.
    TargetSlow,
    /// A range of a production disk answers EIO.
    ProductionEio,
    /// A point of any age is restored, beside the guests.
    Restore,
    /// A point of any age is verified, beside the guests.
    Verify,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Kill,
        Self::KillTwice,
        Self::Stop,
        Self::Freeze,
        Self::DiffEio,
        Self::DiffLost,
        Self::DiffSlow,
        Self::DiffFull,
        Self::TargetFrozen,
        Self::TargetGone,
        Self::TargetStopped,
        Self::TargetSlow,
        Self::ProductionEio,
        Self::Restore,
        Self::Verify,
    ];

    /// As the report names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillTwice => "kill-twice",
            Self::Stop => "stop",
            Self::Freeze => "freeze",
            Self::DiffEio => "diff-eio",
            Self::DiffLost => "diff-lost",
            Self::DiffSlow => "diff-slow",
            Self::DiffFull => "diff-full",
            Self::TargetFrozen => "target-frozen",
            Self::TargetGone => "target-gone",
            Self::TargetStopped => "target-stopped",
            Self::TargetSlow => "target-slow",
            Self::ProductionEio => "production-eio",
            Self::Restore => "restore",
            Self::Verify => "verify",
        }
    }

    /// Whether the process may be killed while it lasts.
    fn takes_a_kill(self) -> bool {
        match self {
            Self::DiffEio
            | Self::DiffLost
            | Self::DiffSlow
            | Self::DiffFull
            | Self::TargetFrozen
            | Self::TargetGone
            | Self::TargetStopped
            | Self::TargetSlow
            | Self::ProductionEio => true,
            Self::Kill
            | Self::KillTwice
            | Self::Stop
            | Self::Freeze
            | Self::Restore
            | Self::Verify => false,
        }
    }
}

/// How long things take.
#[derive(Clone, Debug)]
pub struct Tempo {
    /// Between two events, at least and at most.
    pub calm: [Duration; 2],
    /// A fault, at least and at most.
    pub fault: [Duration; 2],
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Counted from 1.
    pub number: u64,
    /// What.
    pub kind: Kind,
    /// Calm before it.
    pub calm: Duration,
    /// How long it lasts, where it is a fault.
    pub lasting: Duration,
    /// Whether the process is killed in its middle.
    pub with_kill: bool,
    /// A random number for whatever is to be chosen.
    pub choice: u64,
}

/// The events, without end.
#[derive(Debug)]
pub struct Schedule {
    rng: ChaCha8Rng,
    tempo: Tempo,
    deck: Vec<Kind>,
    number: u64,
}

impl Schedule {
    /// As `seed` has it.
    #[must_use]
    pub fn new(seed: u64, tempo: Tempo) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            tempo,
            deck: Vec::new(),
            number: 0,
        }
    }

    fn draw(&mut self) -> Event {
        if self.deck.is_empty() {
            self.deck = Kind::ALL.to_vec();
            self.deck.shuffle(&mut self.rng);
        }
        let kind = self.deck.pop().expect("it was filled");
        self.number += 1;
        let between = |rng: &mut ChaCha8Rng, [from, to]: [Duration; 2]| {
            from + (to - from).mul_f64(rng.random::<f64>())
        };
        // Everything is drawn, whether the kind uses it or not: each event takes as many numbers.
        let (calm, lasting) = (
            between(&mut self.rng, self.tempo.calm),
            between(&mut self.rng, self.tempo.fault),
        );
        let kill = self.rng.random_range(0..3) == 0;
        Event {
            number: self.number,
            kind,
            calm,
            lasting,
            with_kill: kill && kind.takes_a_kill(),
            choice: self.rng.random(),
        }
    }
}

impl Iterator for Schedule {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        Some(self.draw())
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (calm, lasting) = (self.calm.as_secs_f64(), self.lasting.as_secs_f64());
        write!(
            f,
            "{}. after {calm:.1} s {}, {lasting:.1} s",
            self.number,
            self.kind.name()
        )?;
        if self.with_kill {
            f.write_str(", with a kill")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPO: Tempo = Tempo {
        calm: [Duration::from_secs(1), Duration::from_secs(2)],
        fault: [Duration::from_secs(3), Duration::from_secs(9)],
    };

    #[test]
    fn a_seed_replays_and_every_kind_comes_before_one_comes_again() {
        let events = |seed| Schedule::new(seed, TEMPO).take(45).collect::<Vec<_>>();
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
        for deal in events(7).chunks(Kind::ALL.len()) {
            let mut kinds: Vec<_> = deal.iter().map(|event| event.kind).collect();
            kinds.sort();
            assert_eq!(kinds, Kind::ALL);
        }
        for event in events(7) {
            assert!((3.0..=9.0).contains(&event.lasting.as_secs_f64()));
            assert!(event.kind.takes_a_kill() || !event.with_kill);
        }
    }
}
