//! `transit-kmsctl secret-id list`: the secret_ids of a role, without their values.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use clap::Args;
use kms_plugin::cli::OutputFormat;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{EXIT_CODES, NODE, RoleArgs};
use crate::{
    command_error::CommandError,
    vault::{Vault, VaultRequest},
};

/// Lists the secret_ids of a role: accessor, node, age, expiry and remaining logins
///
/// Vault does not give the secret_ids again, so the list holds no secret. A wrapped secret_id is in the list, too. One
/// that is used up or has expired is not.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(super) struct ListArgs {
    /// Only those of this node
    #[arg(long, value_name = "NAME", value_parser = super::parse_node)]
    node: Option<String>,

    /// The format of standard output
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    output: OutputFormat,

    #[command(flatten)]
    role: RoleArgs,
}

/// A secret_id as it is printed.
#[derive(Serialize)]
pub(super) struct ListedSecretId {
    pub(super) accessor: String,
    /// `None` if Vault's time has another form than RFC 3339 in UTC.
    age_seconds: Option<u64>,
    cidr_list: Vec<String>,
    creation_time: String,
    /// `None` if it does not expire.
    expiration_time: Option<String>,
    metadata: BTreeMap<String, String>,
    pub(super) node: Option<String>,
    /// `None` if the number of logins is not limited.
    uses_left: Option<u64>,
}

/// The answer of a lookup. Fields that an older version may lack are optional.
#[derive(Deserialize)]
struct LookupAnswer {
    data: LookupData,
}

#[derive(Deserialize)]
struct LookupData {
    cidr_list: Option<Vec<String>>,
    #[serde(default)]
    creation_time: String,
    #[serde(default)]
    expiration_time: String,
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    secret_id_num_uses: u64,
}

impl ListedSecretId {
    fn new(accessor: String, data: LookupData, now: SystemTime) -> Self {
        let created = humantime::parse_rfc3339(&data.creation_time).ok();
        let metadata = data.metadata.unwrap_or_default();
        Self {
            accessor,
            age_seconds: created
                .and_then(|created| now.duration_since(created).ok())
                .map(|age| age.as_secs()),
            cidr_list: data.cidr_list.unwrap_or_default(),
            creation_time: data.creation_time,
            // Go's zero time means that it does not expire.
            expiration_time: Some(data.expiration_time)
                .filter(|time| !time.is_empty() && !time.starts_with("0001-")),
            node: metadata.get(NODE).cloned(),
            metadata,
            uses_left: Some(data.secret_id_num_uses).filter(|uses| *uses != 0),
        }
    }

    fn cells(&self) -> [String; 5] {
        let or = |value: Option<&String>, otherwise: &str| value.map_or(otherwise, String::as_str).to_owned();
        let whole_seconds = |time: &str| match time.split_once('.') {
            Some((seconds, _)) => format!("{seconds}Z"),
            None => time.to_owned(),
        };
        let age = self.age_seconds.map(Duration::from_secs);
        [
            self.accessor.clone(),
            or(self.node.as_ref(), "-"),
            age.map_or_else(|| self.creation_time.clone(), |age| humantime::format_duration(age).to_string()),
            self.expiration_time.as_deref().map_or_else(|| "never".to_owned(), whole_seconds),
            self.uses_left.map_or_else(|| "unlimited".to_owned(), |uses| uses.to_string()),
        ]
    }
}

/// Prints the list.
pub(super) async fn run(args: &ListArgs) -> Result<(), CommandError> {
    let vault = args.role.vault.connect()?;
    let mut found = secret_ids(&vault, &args.role).await?;
    found.retain(|it| args.node.is_none() || it.node == args.node);
    let text = match args.output {
        OutputFormat::Json => {
            let role = &args.role;
            format!("{}\n", json!({"mount": role.mount, "role": role.role, "secret_ids": found}))
        }
        OutputFormat::Text => table(&found),
    };
    io::stdout().write_all(text.as_bytes()).map_err(|source| CommandError::Write {
        what: Path::new("standard output").display().to_string(),
        source,
    })
}

/// Returns the secret_ids of the role, sorted by node and creation.
pub(super) async fn secret_ids(vault: &Vault, role: &RoleArgs) -> Result<Vec<ListedSecretId>, CommandError> {
    #[expect(clippy::disallowed_methods, reason = "the age of a secret_id is in the time of day")]
    let now = SystemTime::now();
    let mut found = Vec::new();
    for accessor in vault.keys(role.path("secret-id")).await? {
        let lookup = VaultRequest::post(
            role.path("secret-id-accessor/lookup"),
            &json!({"secret_id_accessor": accessor}),
        );
        match vault.call::<LookupAnswer>(lookup).await {
            Ok(answer) => found.push(ListedSecretId::new(accessor, answer.data, now)),
            // It was used up or destroyed after the list was read.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort_by(|a, b| (&a.node, &a.creation_time).cmp(&(&b.node, &b.creation_time)));
    Ok(found)
}

fn table(found: &[ListedSecretId]) -> String {
    let header = ["ACCESSOR", "NODE", "AGE", "EXPIRES", "LOGINS LEFT"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header).chain(found.iter().map(ListedSecretId::cells)).collect();
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 5]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(data: &str) -> ListedSecretId {
        let now = humantime::parse_rfc3339("2026-11-25T21:09:12Z").unwrap();
        ListedSecretId::new("a-1".into(), serde_json::from_str(data).unwrap(), now)
    }

    #[test]
    fn answers_of_old_and_new_servers_are_understood() {
        let full = listed(
            r#"{"cidr_list": ["10.0.0.5/32"], "creation_time": "2026-11-25T20:09:12.312425292Z",
                "expiration_time": "2026-11-26T20:09:12.312425292Z", "metadata": {"node": "cp-1"},
                "secret_id_num_uses": 3, "secret_id_ttl": 86400, "token_bound_cidrs": []}"#,
        );
        assert_eq!(full.cells(), ["a-1", "cp-1", "59m 59s", "2026-11-26T20:09:12Z", "3"]);
        let unlimited = listed(
            r#"{"cidr_list": null, "creation_time": "2026-11-25T22:09:12.3+02:00",
                "expiration_time": "0001-01-01T00:00:00Z", "metadata": null, "secret_id_num_uses": 0}"#,
        );
        assert_eq!(unlimited.cells(), ["a-1", "-", "2026-11-25T22:09:12.3+02:00", "never", "unlimited"]);
        assert_eq!(listed("{}").cells(), ["a-1", "-", "", "never", "unlimited"]);
    }

    #[test]
    fn columns_are_aligned() {
        let lines = table(&[listed(r#"{"metadata": {"node": "a-long-name-of-a-node"}}"#), listed("{}")]);
        let at = |text: &str| lines.lines().map(|line| line.find(text)).collect::<Vec<_>>();
        assert_eq!(at("never")[1], at("never")[2]);
        assert_eq!(at("EXPIRES")[0], at("never")[1]);
    }
}
