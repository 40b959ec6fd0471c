//! A clock that does something when a cut looks at it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::{Clock, UnixNanos};
use sim::SimClock;

/// Looks until the event, which happens once.
type Event = (usize, Box<dyn FnOnce() + Send>);

#[derive(Default)]
pub struct Eventful {
    clock: Arc<SimClock>,
    event: Mutex<Option<Event>>,
}

impl Eventful {
    /// Has `event` happen at the `look`th look at the monotonic clock from here.
    pub fn at_look(&self, look: usize, event: impl FnOnce() + Send + 'static) {
        *self.event.lock().unwrap() = Some((look, Box::new(event)));
    }
}

impl Clock for Eventful {
    fn monotonic(&self) -> Duration {
        let mut event = self.event.lock().unwrap();
        if let Some((looks, _)) = &mut *event {
            *looks -= 1;
        }
        let due = event.take_if(|(looks, _)| *looks == 0);
        drop(event);
        if let Some((_, event)) = due {
            event();
        }
        self.clock.monotonic()
    }

    fn wall(&self) -> UnixNanos {
        self.clock.wall()
    }
}
