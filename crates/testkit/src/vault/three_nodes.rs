//! Starts and stops a raft cluster of three servers.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    daemon::config_file::ConfigFile,
    files::temp_dir::temp_dir,
    net::authority::Authority,
    net::link::NetworkLink,
    vault::server::{Bao, BaoOptions, KEY, MOUNT, Member, POLICY, policy},
    wait::eventually,
};

/// The longest time for an election or for a member to join.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A raft cluster of three servers, and a network link to each. Dropping this value stops them.
pub struct ThreeNodeVault {
    pub members: Vec<Bao>,
    pub links: Vec<NetworkLink>,
    _dir: TempDir,
}

impl ThreeNodeVault {
    /// Starts a cluster with [`KEY`] and [`POLICY`], and waits for a leader.
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// Like [`ThreeNodeVault::start`], with a small disk for the audit log of each member, if the test may mount one.
    pub async fn with_audit_disks() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(audit_disk: bool) -> Self {
        let dir = temp_dir("three-nodes-");
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
        first.set_credentials(&root_token, &unseal_key);
        first.unseal().await;
        first.api("POST", &format!("sys/mounts/{MOUNT}"), json!({"type": "transit"})).await;
        first.api("POST", &format!("{MOUNT}/keys/{KEY}"), json!({})).await;
        first.policy(POLICY, &policy(MOUNT, KEY)).await;
        let mut members = vec![first];
        for name in ["two", "three"] {
            let mut joining = Bao::launch(member(name, Some(members[0].address())), None).await;
            joining.set_credentials(&root_token, &unseal_key);
            joining.unseal_member().await;
            members.push(joining);
        }
        let mut links = Vec::new();
        for member in &members {
            links.push(NetworkLink::to(member).await);
        }
        Self { members, links, _dir: dir }
    }

    /// A config that names all three servers by their links.
    pub async fn rendered(&self) -> ConfigFile {
        let leader = &self.members[self.leader().await];
        let token = leader.create_token(json!({"ttl": "1h"})).await;
        let mut rendered = ConfigFile::of(leader, &token);
        rendered.addresses = self.links.iter().map(NetworkLink::address).collect();
        rendered
    }

    /// Waits for a leader, and returns its index.
    pub async fn leader(&self) -> usize {
        eventually("there is a leader", WAIT_TIMEOUT, async || {
            for (index, member) in self.members.iter().enumerate() {
                if member.health().await == Some(200) {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Waits until one member is the leader and the others are standbys.
    pub async fn wait_complete(&self) {
        eventually("one leader and two standbys", WAIT_TIMEOUT, async || {
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
