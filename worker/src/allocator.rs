//! How soon the allocator gives memory back to the machine.
//!
//! The one place with `unsafe`: the option has no other way to it than a call into the allocator, and without it a
//! worker that is offered more than it takes goes beyond its `--memory` by what it has freed in the last seconds.

#![expect(unsafe_code, reason = "a call into the allocator, which is C")]

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 3.
const PURGE_DELAY: mi_option_t = 15;
/// Its default is a second, and what is freed between two bursts is wanted again sooner.
const MILLISECONDS: c_long = 100;

/// What is free goes back to the machine after a tenth of a second. Called before any other thread runs.
pub(crate) fn give_back_soon() {
    // SAFETY: it writes a number into a table of options of the allocator. That is not safe beside another thread that
    // does the same: there is none yet.
    unsafe { mi_option_set(PURGE_DELAY, MILLISECONDS) }
}
