//! A real cluster of three servers on raft.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    daemon::config_file::Rendered,
    files::temp_dir::scratch,
    net::authority::Authority,
    net::link::Wire,
    vault::server::{Bao, BaoOptions, KEY, MOUNT, Member, POLICY, policy},
    wait::eventually,
};

/// How long the cluster may take to elect a leader, or a member to join.
const PATIENCE: Duration = Duration::from_secs(30);

/// Three servers with one storage, and the wires to them. They end with this value.
pub struct Trio {
    pub members: Vec<Bao>,
    pub wires: Vec<Wire>,
    _dir: TempDir,
}

impl Trio {
    /// A cluster that has a leader, with [`KEY`] and [`POLICY`].
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// As [`Trio::start`]; each member has a disk for its audit log, if we may mount one.
    pub async fn with_audit_disks() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(audit_disk: bool) -> Self {
        let dir = scratch("trio-");
        let authority = Arc::new(Authority::new(dir.path()));
        let member = |name: &str, leader: Option<String>| BaoOptions {
            audit: false,
            member: Some(Member { audit_disk, authority: Arc::clone(&authority), leader, name: name.into() }),
            ..BaoOptions::default()
        };
        let mut first = Bao::launch(member("one", None), None).await;
        let keys = first.api("PUT", "sys/init", json!({"secret_shares": 1, "secret_threshold": 1})).await;
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let (root_token, unseal_key) = (text(&keys["root_token"]), text(&keys["keys_base64"][0]));
        first.adopt(&root_token, &unseal_key);
        first.unseal().await;
        first.api("POST", &format!("sys/mounts/{MOUNT}"), json!({"type": "transit"})).await;
        first.api("POST", &format!("{MOUNT}/keys/{KEY}"), json!({})).await;
        first.policy(POLICY, &policy(MOUNT, KEY)).await;
        let mut members = vec![first];
        for name in ["two", "three"] {
            let mut joining = Bao::launch(member(name, Some(members[0].address())), None).await;
            joining.adopt(&root_token, &unseal_key);
            joining.unseal_member().await;
            members.push(joining);
        }
        let mut wires = Vec::new();
        for member in &members {
            wires.push(Wire::to(member).await);
        }
        Self { members, wires, _dir: dir }
    }

    /// What the daemon is to be told: all three, by their wires.
    pub async fn rendered(&self) -> Rendered {
        let leader = &self.members[self.leader().await];
        let token = leader.create_token(json!({"ttl": "1h"})).await;
        let mut rendered = Rendered::of(leader, &token);
        rendered.addresses = self.wires.iter().map(Wire::address).collect();
        rendered
    }

    /// Waits until there is a leader: its index.
    pub async fn leader(&self) -> usize {
        eventually("there is a leader", PATIENCE, async || {
            for (index, member) in self.members.iter().enumerate() {
                if member.health().await == Some(200) {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Waits until there is a leader and all others stand by.
    pub async fn whole(&self) {
        eventually("the cluster is whole", PATIENCE, async || {
            let mut found = Vec::new();
            for member in &self.members {
                found.push(member.health().await);
            }
            found.sort_unstable();
            if found == [Some(200), Some(429), Some(429)] { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}
