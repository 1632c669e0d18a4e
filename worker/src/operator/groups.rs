//! Numbers the groups that rows belong to, in the order in which they first appear.
//!
//! A group is a key in a namespace: the start of a slice of time, or 0. A single BIGINT key, the most
//! common one, is not written as bytes before a table asks for it.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::keyed_state::codec::{CorruptKey, EncodedKeys, KeyCodec};

/// The groups of some batches.
#[derive(Debug)]
pub(super) struct Groups {
    codec: KeyCodec,
    /// Each group's namespace.
    namespaces: Vec<i64>,
    keys: Keys,
    /// Differs between processes, so that no sender can choose keys that collide. Nothing that leaves an
    /// operator depends on it.
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
enum Keys {
    Bigint(BigintKeys),
    Bytes(BytesKeys),
}

#[derive(Debug, Default)]
struct BigintKeys {
    table: HashTable<BigintGroup>,
    /// The group of the null key, by namespace.
    nulls: BTreeMap<i64, usize>,
    values: Vec<Option<i64>>,
}

#[derive(Debug)]
struct BigintGroup {
    value: i64,
    namespace: i64,
    group: usize,
}

#[derive(Debug, Default)]
struct BytesKeys {
    table: HashTable<BytesGroup>,
    keys: EncodedKeys,
    /// The keys of the batch at hand.
    batch: EncodedKeys,
}

#[derive(Debug)]
struct BytesGroup {
    hash: u64,
    group: usize,
}

impl Groups {
    pub(super) fn new(codec: KeyCodec) -> Groups {
        let keys = match codec.types() {
            [DataType::Int64] => Keys::Bigint(BigintKeys::default()),
            _ => Keys::Bytes(BytesKeys::default()),
        };
        Groups {
            codec,
            namespaces: Vec::new(),
            keys,
            hasher: DefaultHashBuilder::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.namespaces.len()
    }

    pub(super) fn namespaces(&self) -> &[i64] {
        &self.namespaces
    }

    /// The groups' keys as a table has them.
    pub(super) fn encoded_keys(&self, keys: &mut EncodedKeys) {
        match &self.keys {
            Keys::Bigint(own) => {
                let values: ArrayRef = Arc::new(Int64Array::from(own.values.clone()));
                self.codec.encode(&[values], self.len(), keys);
            }
            Keys::Bytes(own) => keys.clone_from(&own.keys),
        }
    }

    /// These groups, which are `groups`, in the order of their keys, and within a key in their own.
    pub(super) fn sort_by_key(&self, groups: &mut [usize]) {
        match &self.keys {
            // A null sorts before every value, as its bytes do.
            Keys::Bigint(own) => {
                let mut keyed: Vec<(Option<i64>, usize)> = groups
                    .iter()
                    .map(|group| (own.values[*group], *group))
                    .collect();
                keyed.sort_unstable();
                for (place, (_, group)) in groups.iter_mut().zip(keyed) {
                    *place = group;
                }
            }
            Keys::Bytes(own) => {
                groups
                    .sort_unstable_by(|a, b| own.keys.key(*a).cmp(own.keys.key(*b)).then(a.cmp(b)));
            }
        }
    }

    /// The keys of these groups as columns.
    pub(super) fn key_columns(&self, groups: &[usize]) -> Result<Vec<ArrayRef>, CorruptKey> {
        match &self.keys {
            Keys::Bigint(own) => {
                let values: Int64Array = groups.iter().map(|group| own.values[*group]).collect();
                Ok(vec![Arc::new(values)])
            }
            Keys::Bytes(own) => self.codec.decode(groups.iter().map(|g| own.keys.key(*g))),
        }
    }

    /// Forgets all groups but these, which are numbered anew in this order.
    pub(super) fn keep_only(&mut self, groups: &[usize]) {
        let namespaces: Vec<i64> = groups.iter().map(|group| self.namespaces[*group]).collect();
        match &mut self.keys {
            Keys::Bigint(own) => {
                let kept: Vec<Option<i64>> = groups.iter().map(|g| own.values[*g]).collect();
                self.clear();
                let Keys::Bigint(own) = &mut self.keys else {
                    unreachable!("they are still numbers");
                };
                let (hasher, numbered) = (&self.hasher, &mut self.namespaces);
                for (value, namespace) in kept.into_iter().zip(namespaces) {
                    match value {
                        Some(value) => own.number(value, namespace, hasher, numbered),
                        None => own.number_null(namespace, numbered),
                    };
                }
            }
            Keys::Bytes(own) => {
                let mut kept = EncodedKeys::default();
                groups
                    .iter()
                    .for_each(|group| kept.push(own.keys.key(*group)));
                own.batch = kept;
                self.clear();
                let Keys::Bytes(own) = &mut self.keys else {
                    unreachable!("they are still bytes");
                };
                let (hasher, numbered) = (&self.hasher, &mut self.namespaces);
                for (row, namespace) in namespaces.into_iter().enumerate() {
                    own.number(row, namespace, hasher, numbered);
                }
            }
        }
    }

    /// Bytes of memory it takes, about.
    pub(super) fn footprint(&self) -> usize {
        let namespaces = self.namespaces.capacity() * size_of::<i64>();
        namespaces
            + match &self.keys {
                Keys::Bigint(own) => {
                    own.table.allocation_size() + own.values.capacity() * size_of::<Option<i64>>()
                }
                Keys::Bytes(own) => own.table.allocation_size() + own.keys.footprint(),
            }
    }

    /// Forgets all groups, and keeps the memory for the next ones.
    pub(super) fn clear(&mut self) {
        self.namespaces.clear();
        match &mut self.keys {
            Keys::Bigint(own) => {
                own.table.clear();
                own.nulls.clear();
                own.values.clear();
            }
            Keys::Bytes(own) => {
                own.table.clear();
                own.keys.clear();
            }
        }
    }

    /// Replaces what `group_of_row` holds by the group of each row.
    pub(super) fn number(
        &mut self,
        columns: &[ArrayRef],
        namespace_of_row: &[i64],
        group_of_row: &mut Vec<usize>,
    ) {
        group_of_row.clear();
        let (hasher, namespaces) = (&self.hasher, &mut self.namespaces);
        match &mut self.keys {
            Keys::Bigint(own) => {
                let column = columns[0].as_primitive::<Int64Type>();
                let rows = column.values().iter().zip(namespace_of_row);
                if column.null_count() == 0 {
                    group_of_row.extend(
                        rows.map(|(value, ns)| own.number(*value, *ns, hasher, namespaces)),
                    );
                    return;
                }
                group_of_row.extend(rows.enumerate().map(|(row, (value, ns))| {
                    match column.is_null(row) {
                        true => own.number_null(*ns, namespaces),
                        false => own.number(*value, *ns, hasher, namespaces),
                    }
                }));
            }
            Keys::Bytes(own) => {
                let rows = namespace_of_row.len();
                self.codec.encode(columns, rows, &mut own.batch);
                group_of_row.extend(
                    (0..rows).map(|row| own.number(row, namespace_of_row[row], hasher, namespaces)),
                );
            }
        }
    }
}

impl BigintKeys {
    #[inline]
    fn number(
        &mut self,
        value: i64,
        namespace: i64,
        hasher: &DefaultHashBuilder,
        namespaces: &mut Vec<i64>,
    ) -> usize {
        let same = |known: &BigintGroup| known.value == value && known.namespace == namespace;
        let rehash = |known: &BigintGroup| hasher.hash_one((known.value, known.namespace));
        let hash = hasher.hash_one((value, namespace));
        match self.table.entry(hash, same, rehash) {
            Entry::Occupied(known) => known.get().group,
            Entry::Vacant(free) => {
                let group = namespaces.len();
                namespaces.push(namespace);
                self.values.push(Some(value));
                free.insert(BigintGroup {
                    value,
                    namespace,
                    group,
                });
                group
            }
        }
    }

    fn number_null(&mut self, namespace: i64, namespaces: &mut Vec<i64>) -> usize {
        *self.nulls.entry(namespace).or_insert_with(|| {
            namespaces.push(namespace);
            self.values.push(None);
            namespaces.len() - 1
        })
    }
}

impl BytesKeys {
    /// The group of the key in this row of the batch at hand.
    fn number(
        &mut self,
        row: usize,
        namespace: i64,
        hasher: &DefaultHashBuilder,
        namespaces: &mut Vec<i64>,
    ) -> usize {
        let key = self.batch.key(row);
        let hash = hasher.hash_one((key, namespace));
        let same = |known: &BytesGroup| {
            known.hash == hash
                && namespaces[known.group] == namespace
                && self.keys.key(known.group) == key
        };
        if let Some(known) = self.table.find(hash, same) {
            return known.group;
        }
        let group = namespaces.len();
        namespaces.push(namespace);
        self.keys.push(key);
        self.table
            .insert_unique(hash, BytesGroup { hash, group }, |known| known.hash);
        group
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use proptest::prelude::*;

    use super::*;

    /// Rows: a key and a namespace each.
    type Batch = Vec<(Option<i64>, i64)>;

    fn batches() -> impl Strategy<Value = Vec<Batch>> {
        let row = (prop::option::weighted(0.8, -3_i64..4), 0_i64..3);
        prop::collection::vec(prop::collection::vec(row, 0..20), 1..6)
    }

    /// Numbers groups in order of appearance, the plain way.
    fn expected(batches: &[Batch]) -> Vec<usize> {
        let mut seen: Vec<(Option<i64>, i64)> = Vec::new();
        let mut groups = Vec::new();
        for row in batches.iter().flatten() {
            let known = seen.iter().position(|group| group == row);
            groups.push(known.unwrap_or(seen.len()));
            if known.is_none() {
                seen.push(*row);
            }
        }
        groups
    }

    proptest! {
        #[test]
        fn groups_are_numbered_in_order_of_appearance_whatever_the_keys_are_made_of(batches in batches()) {
            let bigint = |keys: Vec<Option<i64>>| vec![Arc::new(Int64Array::from(keys)) as ArrayRef];
            let text = |keys: Vec<Option<i64>>| {
                let keys = keys.into_iter().map(|key| key.map(|key| key.to_string()));
                vec![Arc::new(keys.collect::<StringArray>()) as ArrayRef]
            };
            for (types, columns) in [
                (vec![DataType::Int64], &bigint as &dyn Fn(Vec<Option<i64>>) -> Vec<ArrayRef>),
                (vec![DataType::Utf8], &text),
            ] {
                let codec = KeyCodec::new(types).unwrap();
                let mut groups = Groups::new(codec.clone());
                let (mut numbered, mut of_batch) = (Vec::new(), Vec::new());
                for batch in &batches {
                    let (keys, namespaces): (Vec<_>, Vec<_>) = batch.iter().copied().unzip();
                    groups.number(&columns(keys), &namespaces, &mut of_batch);
                    numbered.extend_from_slice(&of_batch);
                }
                prop_assert_eq!(&numbered, &expected(&batches));

                let mut keys = EncodedKeys::default();
                groups.encoded_keys(&mut keys);
                let mut one = EncodedKeys::default();
                for (row, group) in batches.iter().flatten().zip(&numbered) {
                    codec.encode(&columns(vec![row.0]), 1, &mut one);
                    prop_assert_eq!(keys.key(*group), one.key(0));
                    prop_assert_eq!(groups.namespaces()[*group], row.1);
                }
                let mut sorted: Vec<usize> = (0..groups.len()).collect();
                groups.sort_by_key(&mut sorted);
                prop_assert!(sorted.is_sorted_by_key(|group| (keys.key(*group), *group)));
                let decoded = groups.key_columns(&sorted).unwrap();
                codec.encode(&decoded, sorted.len(), &mut one);
                for (row, group) in sorted.iter().enumerate() {
                    prop_assert_eq!(one.key(row), keys.key(*group));
                }
                let kept: Vec<usize> = sorted.iter().copied().filter(|group| group % 3 == 0).collect();
                let namespaces: Vec<i64> = kept.iter().map(|g| groups.namespaces()[*g]).collect();
                groups.keep_only(&kept);
                prop_assert_eq!(groups.namespaces(), &namespaces);
                groups.encoded_keys(&mut one);
                for (number, group) in kept.iter().enumerate() {
                    prop_assert_eq!(one.key(number), keys.key(*group));
                }
                // What was kept is found again under its new number.
                let again: Vec<(Option<i64>, i64)> = batches.iter().flatten().copied().collect();
                let (again_keys, again_namespaces): (Vec<_>, Vec<_>) = again.into_iter().unzip();
                groups.number(&columns(again_keys), &again_namespaces, &mut of_batch);
                for (number, group) in of_batch.iter().zip(&numbered) {
                    if let Some(place) = kept.iter().position(|kept| kept == group) {
                        prop_assert_eq!(*number, place);
                    }
                }
                groups.clear();
                groups.number(&columns(vec![Some(9)]), &[7], &mut of_batch);
                prop_assert_eq!(&of_batch, &[0]);
            }
        }
    }
}
