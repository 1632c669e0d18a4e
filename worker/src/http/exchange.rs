//! A bundle of rows, watermarks and barriers from another worker.

use common::error::Problem;
use common::protocol::exchange::{Bundle, BundleReply};

use super::Routes;

pub async fn exchange(routes: Routes, bundle: Bundle) -> Result<BundleReply, Problem> {
    routes.exchange.receive(bundle)
}
