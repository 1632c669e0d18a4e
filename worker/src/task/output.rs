//! The outputs of a task: one per edge, each with a writer to every task of the next stage.

use arrow::error::ArrowError;

use super::channel::ChannelWriter;
use super::message::{Message, Rows, Signal};
use super::router::Router;
use crate::exchange::outbound::RemoteWriter;

/// The way to one task.
#[derive(Debug)]
pub enum Writer {
    /// In this process: rows pass as they are.
    Local(ChannelWriter),
    Remote(RemoteWriter),
}

/// One edge of the task graph, seen from one task of its first stage.
#[derive(Debug)]
pub struct Output {
    router: Router,
    /// One per task the edge leads to from here, in the order of their indices.
    writers: Vec<Writer>,
}

impl Writer {
    fn has_room(&self) -> bool {
        match self {
            Writer::Local(writer) => writer.has_room(),
            Writer::Remote(writer) => writer.has_room(),
        }
    }

    fn push(&self, message: Message) -> Result<(), ArrowError> {
        match self {
            Writer::Local(writer) => {
                writer.push(message);
                Ok(())
            }
            Writer::Remote(writer) => writer.push(&message),
        }
    }
}

impl Output {
    pub fn new(router: Router, writers: Vec<Writer>) -> Output {
        Output { router, writers }
    }

    /// Whether every task it leads to can take more: rows may go to any of them.
    pub fn has_room(&self) -> bool {
        self.writers.iter().all(Writer::has_room)
    }

    pub fn rows(&mut self, rows: &Rows) -> Result<(), ArrowError> {
        for (target, rows) in self.router.route(rows)? {
            self.writers[target].push(Message::Rows(rows))?;
        }
        Ok(())
    }

    /// Signals go to every task.
    pub fn signal(&self, signal: Signal) -> Result<(), ArrowError> {
        self.writers
            .iter()
            .try_for_each(|writer| writer.push(Message::Signal(signal)))
    }
}
