//! Helm 3 and 4 with the chart.

use std::{fs, path::Path};

use super::{
    CHART, VALUES,
    tools::{Ran, tool},
};

/// The name of every release, and of the objects in it.
pub(super) const RELEASE: &str = "transit-kms";
/// The namespace of every release.
pub(super) const NAMESPACE: &str = "kube-system";

/// A major version of Helm.
#[derive(Clone, Copy, Debug)]
pub(super) enum Helm {
    V3,
    V4,
}

impl Helm {
    pub(super) const BOTH: [Self; 2] = [Self::V3, Self::V4];

    /// Runs Helm with these arguments.
    pub(super) fn run(self, arguments: &[&str]) -> Ran {
        let name = match self {
            Self::V3 => "bin/helm3",
            Self::V4 => "bin/helm4",
        };
        tool(name, arguments)
    }

    /// Runs `helm template` with additional arguments.
    pub(super) fn template(self, arguments: &[&str]) -> Ran {
        self.run(&[&["template", RELEASE, CHART, "--namespace", NAMESPACE], arguments].concat())
    }

    /// Renders a value set, without the empty lines between objects, in which Helm 3 and 4 differ.
    pub(super) fn render(self, set: &str) -> String {
        let text = self.template(&["--values", &values(set)]).stdout();
        // Split at whole lines, because a PEM certificate also ends with "---\n".
        let text = format!("\n{text}");
        let objects: Vec<_> = text.split("\n---\n").map(str::trim).filter(|text| !text.is_empty()).collect();
        objects.join("\n---\n") + "\n"
    }
}

/// Returns the names of all value sets.
pub(super) fn sets() -> Vec<String> {
    let entries = fs::read_dir(VALUES).unwrap();
    let mut names: Vec<_> = entries.map(|entry| stem(&entry.unwrap().path())).collect();
    names.sort();
    assert!(names.len() > 9, "{names:?}");
    names
}

/// Returns the path of a value set.
pub(super) fn values(set: &str) -> String {
    format!("{VALUES}/{set}.yaml")
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}
