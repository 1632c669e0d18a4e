//! One signal, one deadline: how a process ends.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use crate::time::Span;

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    InTime,
    /// What was to be stopped is still at it; the process may end all the same, as after a crash.
    TooLate,
    /// The stop itself failed.
    Panicked,
}

/// The signals a process is told to stop by. From its making on they no longer kill.
#[derive(Debug)]
pub struct Signals {
    runtime: tokio::runtime::Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn new() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let context = runtime.enter();
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        drop(context);
        Ok(Signals {
            runtime,
            terminate,
            interrupt,
        })
    }

    /// Blocks until the process is told to stop; says how.
    pub fn wait(&mut self) -> &'static str {
        let Signals {
            runtime,
            terminate,
            interrupt,
        } = self;
        runtime.block_on(told(terminate, interrupt))
    }

    /// Does `work` on a thread of its own and blocks until it is done. `Err`: the process was told to stop
    /// before, and how; the work is left behind.
    pub fn unless_told<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Result<T, &'static str>> {
        let (sender, done) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("start".to_owned())
            .spawn(move || {
                // Nobody listens any more if the process was told to stop.
                drop(sender.send(work()));
            })?;
        let Signals {
            runtime,
            terminate,
            interrupt,
        } = self;
        runtime.block_on(async {
            tokio::select! {
                signal = told(terminate, interrupt) => Ok(Err(signal)),
                done = done => match done {
                    Ok(done) => Ok(Ok(done)),
                    Err(_) => Err(io::Error::other("it panicked")),
                },
            }
        })
    }
}

async fn told(
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Runs `stop` and waits for its end, at most for `deadline`.
pub fn stop_within(deadline: Span, stop: impl FnOnce() + Send + 'static) -> io::Result<Stopped> {
    let (done, wait) = sync_channel::<()>(1);
    std::thread::Builder::new()
        .name("stop".to_owned())
        .spawn(move || {
            stop();
            // Nobody listens any more if the deadline has passed.
            done.send(()).unwrap_or_default();
        })?;
    Ok(match wait.recv_timeout(deadline.as_duration()) {
        Ok(()) => Stopped::InTime,
        Err(RecvTimeoutError::Timeout) => Stopped::TooLate,
        Err(RecvTimeoutError::Disconnected) => Stopped::Panicked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_in_time_or_is_left_behind_or_is_known_to_have_failed() {
        let long = Span::from_secs(60);
        assert_eq!(stop_within(long, || ()).unwrap(), Stopped::InTime);
        let (release, held) = sync_channel::<()>(1);
        let stuck = move || held.recv().unwrap_or_default();
        assert_eq!(stop_within(Span(10), stuck).unwrap(), Stopped::TooLate);
        drop(release);
        let failing = || panic!("on purpose");
        assert_eq!(stop_within(long, failing).unwrap(), Stopped::Panicked);
    }
}
