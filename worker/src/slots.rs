//! Which thread runs which actor: tasks have threads of their own, and control never shares one with them.

use std::io;

use actix_rt::{Arbiter, ArbiterHandle};
use common::ids::{JobId, TaskId};

use crate::background::Background;

/// The threads of a worker.
#[derive(Debug)]
pub struct Threads {
    /// One per core: tasks.
    data: Vec<Arbiter>,
    /// Jobs and lanes: nearly always idle.
    control: Arbiter,
    /// Partitions.
    log: Arbiter,
    background: Background,
}

impl Threads {
    pub fn start(cores: u32) -> io::Result<Threads> {
        let background = Background::start()?;
        let data = (0..cores.max(1)).map(|_| Arbiter::new()).collect();
        Ok(Threads {
            data,
            control: Arbiter::new(),
            log: Arbiter::new(),
            background,
        })
    }

    /// The thread of a task. The instances of one stage are spread, and so are its neighbours'.
    pub fn task(&self, job: JobId, task: TaskId) -> ArbiterHandle {
        let place = job.0 as usize + usize::from(task.stage.0) + task.index as usize;
        self.data[place % self.data.len()].handle()
    }

    pub fn control(&self) -> ArbiterHandle {
        self.control.handle()
    }

    pub fn log(&self) -> ArbiterHandle {
        self.log.handle()
    }

    pub fn background(&self) -> &Background {
        &self.background
    }

    /// Ends all threads, and waits until they have ended. Blocks.
    pub fn stop(self) {
        let Threads {
            data,
            control,
            log,
            background,
        } = self;
        let arbiters: Vec<Arbiter> = data.into_iter().chain([control, log]).collect();
        for arbiter in &arbiters {
            arbiter.stop();
        }
        for arbiter in arbiters {
            if arbiter.join().is_err() {
                tracing::error!("a thread of the worker panicked");
            }
        }
        background.stop();
    }
}
