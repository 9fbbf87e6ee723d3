//! Helm, of either major version, on our chart.

use std::{fs, path::Path};

use super::{
    CHART, VALUES,
    tools::{Ran, tool},
};

/// The name of every release here, and so of what is in it.
pub(super) const RELEASE: &str = "transit-kms";
/// Its namespace.
pub(super) const NAMESPACE: &str = "kube-system";

/// A Helm by its major version.
#[derive(Clone, Copy, Debug)]
pub(super) enum Helm {
    V3,
    V4,
}

impl Helm {
    pub(super) const BOTH: [Self; 2] = [Self::V3, Self::V4];

    /// Runs it with these arguments.
    pub(super) fn run(self, arguments: &[&str]) -> Ran {
        let name = match self {
            Self::V3 => "bin/helm3",
            Self::V4 => "bin/helm4",
        };
        tool(name, arguments)
    }

    /// `helm template`, with further arguments.
    pub(super) fn template(self, arguments: &[&str]) -> Ran {
        self.run(&[&["template", RELEASE, CHART, "--namespace", NAMESPACE], arguments].concat())
    }

    /// What it makes of a value set, without the empty lines between objects, of which the two have not the same.
    pub(super) fn render(self, set: &str) -> String {
        let text = self.template(&["--values", &values(set)]).stdout();
        // Not "---\n": a certificate ends like that.
        let text = format!("\n{text}");
        let objects: Vec<_> = text.split("\n---\n").map(str::trim).filter(|text| !text.is_empty()).collect();
        objects.join("\n---\n") + "\n"
    }
}

/// The names of all value sets.
pub(super) fn sets() -> Vec<String> {
    let entries = fs::read_dir(VALUES).unwrap();
    let mut names: Vec<_> = entries.map(|entry| stem(&entry.unwrap().path())).collect();
    names.sort();
    assert!(names.len() > 9, "{names:?}");
    names
}

/// The file of a value set.
pub(super) fn values(set: &str) -> String {
    format!("{VALUES}/{set}.yaml")
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}
