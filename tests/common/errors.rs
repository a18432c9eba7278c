//! Conversions of our errors.

use std::io::{Error, ErrorKind};

/// Fails unless the error becomes an `io::Error` of this kind, with the kernel's number for it where there are such
/// numbers. (Those of the kinds that the tests ask for stand for one number each.)
#[track_caller]
pub fn assert_becomes(error: impl Into<Error>, kind: ErrorKind) {
    let error = error.into();
    assert_eq!(error.kind(), kind);
    assert_eq!(error.raw_os_error().is_some(), cfg!(unix), "{error:?}");
}
