//! Threads for what goes on behind the jobs' backs: they get the processor where nobody who is waited for needs it.
//!
//! Who holds a lock here may be kept from going on for a while. So nothing that is waited for may wait for a lock
//! that is held here over more than a moment's work, unless it can have that cut short.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tracing::warn;

/// How much nicer these threads are than the others: beside one of those such a one gets a tenth of a processor.
const NICER: i32 = 10;
const NICEST: i32 = 19;

/// As many threads as there is work: a short one does not wait for a long one of another job.
#[derive(Debug)]
pub struct Background {
    /// `None` only once it has been stopped.
    runtime: Option<Runtime>,
}

impl Background {
    pub fn start() -> io::Result<Background> {
        let runtime = Builder::new_current_thread()
            .thread_name("worker-background")
            .on_thread_start(be_nicer)
            .build()?;
        Ok(Background {
            runtime: Some(runtime),
        })
    }

    /// Runs what may block.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let runtime = self.runtime.as_ref();
        runtime
            .expect("only stopping takes it")
            .spawn_blocking(work)
    }

    /// Waits for what has begun. Blocks.
    pub fn stop(mut self) {
        drop(self.runtime.take());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Whoever drops it may be on a thread that must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Only Linux has this thread by thread.
fn be_nicer() {
    if cfg!(target_os = "linux") {
        let nicer = getpriority_process(None)
            .and_then(|own| setpriority_process(None, NICEST.min(own + NICER)));
        if let Err(error) = nicer {
            warn!(%error, "what goes on in the background is as urgent as everything else");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_runs_here_is_less_urgent_than_who_asked_for_it() {
        let background = Background::start().unwrap();
        let priority = || getpriority_process(None).unwrap();
        let (asked, there) = std::sync::mpsc::channel();
        background.run(move || asked.send(priority()).unwrap());
        assert_eq!(there.recv().unwrap(), NICEST.min(priority() + NICER));
        background.stop();
    }

    #[test]
    fn stopping_waits_for_what_has_begun() {
        let background = Background::start().unwrap();
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = background.run(move || {
            begin.send(()).unwrap();
            ended.recv().unwrap();
        });
        begun.recv().unwrap();
        assert!(!work.is_finished());
        end.send(()).unwrap();
        background.stop();
        assert!(work.is_finished());
    }
}
