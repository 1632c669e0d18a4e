//! Every row goes to the one task that owns its key, once and in order.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int8Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use common::key_group::{key_group, owner};
use common::plan::edge::Route;
use common::plan::expression::Expression;
use common::schema::{Column, ColumnType, to_arrow_schema};
use proptest::prelude::*;

use super::message::{Origin, Rows};
use super::router::Router;
use crate::keyed_state::codec::{EncodedKeys, KeyCodec};

const KEY_GROUPS: u16 = 64;

fn columns() -> Vec<Column> {
    vec![
        Column::new("id", ColumnType::BigInt, true),
        Column::new("name", ColumnType::Varchar, true),
    ]
}

/// Rows whose kinds and origins follow from their positions.
fn rows(ids: Vec<Option<i64>>, names: Vec<Option<String>>) -> Rows {
    let count = ids.len();
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids)),
        Arc::new(StringArray::from(names)),
    ];
    Rows {
        batch: RecordBatch::try_new(to_arrow_schema(&columns()), arrays).unwrap(),
        kinds: Some(Int8Array::from_iter_values(
            (0..count).map(|row| (row % 4) as i8),
        )),
        origin: Some(Origin {
            source: Arc::from("in"),
            partition: 0,
            offsets: Int64Array::from_iter_values(0..count as i64),
        }),
    }
}

fn hash(keys: &[&str]) -> Route {
    Route::Hash {
        keys: keys.iter().map(|key| Expression((*key).into())).collect(),
    }
}

fn router(route: &Route, targets: usize) -> Router {
    Router::new(route, &columns(), targets, KEY_GROUPS).unwrap()
}

proptest! {
    #[test]
    fn rows_go_to_the_owners_of_their_keys_once_and_in_order(
        pairs in prop::collection::vec(
            (prop::option::weighted(0.9, -20_i64..20), prop::option::weighted(0.9, "[a-c]{0,2}")), 1..80),
        keys in prop::sample::select(vec![&["id"][..], &["name"], &["name", "id"], &["id % 3"]]),
        targets in 1_usize..7,
        all_ids in any::<bool>(),
    ) {
        let (ids, names): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let ids: Vec<_> = ids.into_iter().map(|id| if all_ids { id.or(Some(0)) } else { id }).collect();
        let rows = rows(ids.clone(), names.clone());
        let routed = router(&hash(keys), targets).route(&rows).unwrap();

        let mut seen = vec![0; ids.len()];
        for (target, part) in &routed {
            prop_assert!(!part.is_empty());
            let offsets = part.origin.as_ref().unwrap().offsets.values();
            prop_assert!(offsets.is_sorted());
            for (i, offset) in offsets.iter().enumerate() {
                let row = *offset as usize;
                seen[row] += 1;
                let part_id = part.batch.column(0).as_primitive::<Int64Type>();
                prop_assert_eq!(part_id.is_valid(i).then(|| part_id.value(i)), ids[row]);
                prop_assert_eq!(part.kinds.as_ref().unwrap().value(i), (row % 4) as i8);
                let key: Vec<ArrayRef> = keys.iter().map(|key| match *key {
                    "id" => Arc::new(Int64Array::from(vec![ids[row]])) as ArrayRef,
                    "id % 3" => Arc::new(Int64Array::from(vec![ids[row].map(|id| id % 3)])),
                    _ => Arc::new(StringArray::from(vec![names[row].clone()])),
                }).collect();
                let types = key.iter().map(|column| column.data_type().clone()).collect();
                let mut encoded = EncodedKeys::default();
                KeyCodec::new(types).unwrap().encode(&key, 1, &mut encoded);
                let group = key_group(encoded.key(0), KEY_GROUPS);
                prop_assert_eq!(owner(group, KEY_GROUPS, targets as u32) as usize, *target);
            }
        }
        prop_assert!(seen.iter().all(|count| *count == 1), "{:?}", seen);
    }
}

fn five() -> Rows {
    rows((0..5).map(Some).collect(), vec![Some("x".into()); 5])
}

#[test]
fn rows_for_one_task_are_not_copied() {
    let rows = five();
    for (route, targets) in [(hash(&["name"]), 4), (Route::Forward, 1), (hash(&[]), 4)] {
        let routed = router(&route, targets).route(&rows).unwrap();
        assert_eq!(routed.len(), 1);
        assert!(Arc::ptr_eq(
            rows.batch.column(0),
            routed[0].1.batch.column(0)
        ));
    }
}

#[test]
fn without_keys_everything_goes_to_the_first_task() {
    let routed = router(&hash(&[]), 3).route(&five()).unwrap();
    assert_eq!(routed[0].0, 0);
}

#[test]
fn batches_are_rebalanced_in_turn() {
    let mut router = router(&Route::Rebalance, 3);
    let targets: Vec<usize> = (0..5)
        .map(|_| router.route(&five()).unwrap()[0].0)
        .collect();
    assert_eq!(targets, [0, 1, 2, 0, 1]);
}

#[test]
fn rows_whose_key_cannot_be_computed_are_routed_as_if_it_were_null() {
    let mut router = router(&hash(&["10 / id"]), 5);
    let zero = router.route(&rows(vec![Some(0)], vec![None])).unwrap();
    let null = router.route(&rows(vec![None], vec![None])).unwrap();
    assert_eq!(zero[0].0, null[0].0);
    let both = router
        .route(&rows(vec![Some(0), Some(1)], vec![None, None]))
        .unwrap();
    assert_eq!(both.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 2);
}

#[test]
fn a_forward_edge_to_several_tasks_is_refused() {
    assert!(Router::new(&Route::Forward, &columns(), 2, KEY_GROUPS).is_err());
}
