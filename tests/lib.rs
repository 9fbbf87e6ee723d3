//! The tests on real parts are in the folders beside this file; this library is empty.
