//! How much of what clients send is in memory at once. Beyond it they wait for a moment and are then told to come again,
//! before their bodies are read: a worker that took everything would end for want of memory, and with it what it has
//! accepted. The wait keeps the worker busy with work, and not with refusing.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::Payload;
use bytes::{Bytes, BytesMut};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use common::time::Span;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a request takes while it is worked on, in times its body: as it came, as records, and as batches.
const COPIES: usize = 3;
/// A body of unknown length is let in by so much at a time.
const STEP_BYTES: usize = 1 << 20;
/// A request waits for room, before anything of it has any, as long as it would be told to stay away; only so many do.
const PATIENCE: Span = Span::from_secs(1);
const MAX_WAITING: usize = 128;
/// Bodies that are read into records at once, for each processor.
const WORKED_ON_PER_CORE: usize = 2;

#[derive(Clone, Debug)]
pub struct Intake {
    room: Arc<Semaphore>,
    bytes: usize,
    waiting: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// A body, and the room it takes until this is dropped.
#[derive(Debug)]
pub struct Admitted {
    pub body: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Intake {
    pub fn new(bytes: u64) -> Intake {
        let bytes = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .clamp(1, Semaphore::MAX_PERMITS);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Intake {
            room: Arc::new(Semaphore::new(bytes)),
            bytes,
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            turns: Arc::new(Semaphore::new(cores * WORKED_ON_PER_CORE)),
        }
    }

    /// The body of a request, if there is room for it. One that needs more than there is gets all there is.
    pub async fn read(
        &self,
        request: &HttpRequest,
        mut payload: Payload,
    ) -> Result<Admitted, Problem> {
        let length = request.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > MAX_REQUEST_BYTES) {
            return Err(too_large());
        }
        let first = length.unwrap_or(STEP_BYTES);
        let mut room = match self.admit(0, first) {
            Ok(room) => room,
            Err(refused) => self.wait_for_room(first).await.ok_or(refused)?,
        };
        let mut body = BytesMut::with_capacity(first);
        while let Some(piece) = payload.next().await {
            let piece = piece.map_err(|error| {
                let detail = format!("the body cannot be read: {error}");
                Problem::new(ErrorCode::InvalidRequest, detail)
            })?;
            let longer = body.len() + piece.len();
            if longer > MAX_REQUEST_BYTES {
                return Err(too_large());
            }
            if longer > body.capacity() {
                let next = longer.max(body.capacity() + STEP_BYTES);
                room.merge(self.admit(body.capacity(), next)?);
                body.reserve(next - body.len());
            }
            body.extend_from_slice(&piece);
        }
        Ok(Admitted {
            body: body.freeze(),
            _room: room,
        })
    }

    /// The turn to work on a body that takes a while. More at once would be no faster, and each thread that works keeps
    /// memory of its own.
    pub async fn turn(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.expect("it is never closed")
    }

    /// Room for a body that grows from one length to another. Who has some does not wait for more, which others may
    /// have who do the same.
    fn admit(&self, from: usize, to: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let more = self.bytes_of(to) - self.bytes_of(from);
        let room = Arc::clone(&self.room).try_acquire_many_owned(more);
        room.map_err(|_| {
            let detail = "requests that came before take all the memory that there is for them";
            Problem::new(ErrorCode::Overloaded, detail)
                .hint("Repeat the request in a moment; send less at a time, or to another worker.")
        })
    }

    async fn wait_for_room(&self, length: usize) -> Option<OwnedSemaphorePermit> {
        let _place = self.waiting.try_acquire().ok()?;
        let room = Arc::clone(&self.room).acquire_many_owned(self.bytes_of(length));
        let room = tokio::time::timeout(PATIENCE.as_duration(), room).await;
        room.ok()?.ok()
    }

    /// What a request with such a body takes.
    fn bytes_of(&self, length: usize) -> u32 {
        let bytes = (length * COPIES).min(self.bytes);
        u32::try_from(bytes).expect("a request is much smaller")
    }
}

fn too_large() -> Problem {
    let detail = format!("the body has more than {MAX_REQUEST_BYTES} bytes");
    Problem::new(ErrorCode::RequestTooLarge, detail).hint("Send less at a time.")
}

#[cfg(test)]
mod tests {
    use actix_web::FromRequest;
    use actix_web::test::TestRequest;

    use super::*;

    async fn read(intake: &Intake, bytes: usize, says_length: bool) -> Result<Admitted, Problem> {
        let request = TestRequest::post().set_payload(vec![b'x'; bytes]);
        let (mut request, mut payload) = request.to_http_parts();
        if !says_length {
            request = TestRequest::post().to_http_request();
        }
        let payload = Payload::from_request(&request, &mut payload).await.unwrap();
        intake.read(&request, payload).await
    }

    fn run(test: impl Future<Output = ()>) {
        actix_web::rt::System::new().block_on(test);
    }

    #[test]
    fn what_is_not_done_yet_leaves_so_much_less_room() {
        run(leaves_less_room());
    }

    async fn leaves_less_room() {
        let intake = Intake::new(10 * COPIES as u64);
        let first = read(&intake, 6, true).await.unwrap();
        assert_eq!(first.body.len(), 6);
        let refused = read(&intake, 5, true).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        let second = read(&intake, 4, true).await.unwrap();
        drop(first);
        drop(read(&intake, 6, true).await.unwrap());
        drop(second);
        // Alone, even one that is too large for the room has a chance.
        drop(read(&intake, 11, true).await.unwrap());
        let large = read(&intake, 10, true).await.unwrap();
        assert!(read(&intake, 11, true).await.is_err());
        drop(large);
    }

    #[test]
    fn who_comes_when_there_is_no_room_waits_for_a_moment() {
        run(waits_for_a_moment());
    }

    async fn waits_for_a_moment() {
        let intake = Intake::new(10 * COPIES as u64);
        let first = read(&intake, 10, true).await.unwrap();
        let gone = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(read(&intake, 10, true), gone);
        assert_eq!(second.unwrap().body.len(), 10);
    }

    #[test]
    fn a_body_of_unknown_length_takes_room_as_it_comes() {
        run(takes_room_as_it_comes());
    }

    async fn takes_room_as_it_comes() {
        let intake = Intake::new((3 * STEP_BYTES * COPIES) as u64);
        let first = read(&intake, STEP_BYTES + 1, false).await.unwrap();
        assert_eq!(first.body.len(), STEP_BYTES + 1);
        assert!(read(&intake, STEP_BYTES + 1, false).await.is_err());
        let second = read(&intake, STEP_BYTES, false).await.unwrap();
        assert!(read(&intake, 1, false).await.is_err());
        drop((first, second));
        assert_eq!(intake.room.available_permits(), 3 * STEP_BYTES * COPIES);
        let most = MAX_REQUEST_BYTES + 1;
        let refused = read(&Intake::new(u64::MAX), most, false).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::RequestTooLarge);
    }
}
