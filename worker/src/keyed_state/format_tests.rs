//! The bytes of a base file, pinned: who changes them decides to leave the state of every job behind.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::CheckpointId;

use super::base_file::{self, BaseFileError, Since};
use super::overlay::Overlay;
use super::section::TableId;

#[test]
fn a_base_file_has_these_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut overlay = Overlay::default();
    overlay.put(7, b"bc", b"");
    overlay.put(-1, b"a", b"one");
    overlay.delete(8, b"gone");
    let table = TableId {
        operator: "count".to_owned(),
        table: "groups".to_owned(),
    };
    let since = Since {
        tables: BTreeMap::from([(table, (BTreeSet::new(), vec![0..=u16::MAX]))]),
        read: &|_, _| Ok::<_, BaseFileError>(overlay.clone()),
    };
    let written = base_file::write(
        directory.path(),
        CheckpointId(300),
        1,
        None,
        &since,
        &|| Ok(()),
    );
    let path = written.unwrap().path().to_owned();
    assert!(path.ends_with("base-00000000000000000300.bin"));
    let bytes = std::fs::read(path).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            // Magic, two entries.
            "4d53424153453031",
            "ffffffffffffffff0100000003000000616f6e65",
            "070000000000000002000000000000006263",
            // The footer.
            "83aa636865636b706f696e74cd012caa6b65795f67726f75707301a67461626c",
            "65739183a57461626c6582a86f70657261746f72a5636f756e74a57461626c65",
            "a667726f757073a7636c656172656490a873656374696f6e739183a567726f75",
            "7000a5627974657326a3637263ce2d152426",
            // Its length and checksum, magic.
            "72000000f16dee6f4d53424153453031",
        )
    );
}
