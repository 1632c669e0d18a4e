//! The columns of generated streams: what the planner types and the generator fills.

use super::connector::GeneratorKind;
use crate::schema::{Column, ColumnType};

impl GeneratorKind {
    /// All columns of this stream, in order. The last word on names and types: a table's own column
    /// list may only pick some of them.
    pub fn columns(self) -> Vec<Column> {
        use ColumnType::{BigInt, Boolean, Double, Timestamp, Varchar};
        let columns: &[(&str, ColumnType)] = match self {
            GeneratorKind::NexmarkPerson => &[
                ("id", BigInt),
                ("name", Varchar),
                ("email_address", Varchar),
                ("credit_card", Varchar),
                ("city", Varchar),
                ("state", Varchar),
                ("date_time", Timestamp(3)),
                ("extra", Varchar),
            ],
            GeneratorKind::NexmarkAuction => &[
                ("id", BigInt),
                ("item_name", Varchar),
                ("description", Varchar),
                ("initial_bid", BigInt),
                ("reserve", BigInt),
                ("date_time", Timestamp(3)),
                ("expires", Timestamp(3)),
                ("seller", BigInt),
                ("category", BigInt),
                ("extra", Varchar),
            ],
            GeneratorKind::NexmarkBid => &[
                ("auction", BigInt),
                ("bidder", BigInt),
                ("price", BigInt),
                ("channel", Varchar),
                ("url", Varchar),
                ("date_time", Timestamp(3)),
                ("extra", Varchar),
            ],
            GeneratorKind::Clickstream => &[
                ("session", BigInt),
                ("user_id", BigInt),
                ("action", Varchar),
                ("page", Varchar),
                ("product", BigInt),
                ("price", Double),
                ("quantity", BigInt),
                ("ts", Timestamp(3)),
            ],
            GeneratorKind::Payments => &[
                ("payment", BigInt),
                ("card", BigInt),
                ("merchant", Varchar),
                ("category", Varchar),
                ("country", Varchar),
                ("amount", Double),
                ("latitude", Double),
                ("longitude", Double),
                ("is_fraud", Boolean),
                ("ts", Timestamp(3)),
            ],
            GeneratorKind::Sensors => &[
                ("sensor", BigInt),
                ("site", Varchar),
                ("temperature", Double),
                ("humidity", Double),
                ("is_anomaly", Boolean),
                ("ts", Timestamp(3)),
            ],
        };
        columns
            .iter()
            .map(|(name, kind)| Column::new(*name, kind.clone(), false))
            .collect()
    }
}
