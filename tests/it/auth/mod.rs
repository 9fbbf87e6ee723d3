//! Logins of the daemon, on a real server. Each method goes through the same cases; what is special about a method
//! has tests beside its setup.

mod agent;
mod approle;
mod aws;
mod cases;
mod cert;
mod deliveries;
mod inline;
mod jwt;
mod svid;
mod token_file;
mod tokens;
mod userpass;
