//! The README, metadata and package of the chart.

use std::{fs, path::Path};

use super::{
    CHART, VALUES,
    helm::Helm,
    objects::objects_in,
    tools::{run, tool},
};
use testkit::command;

#[test]
fn the_readme_matches_the_output_of_helm_docs() {
    let arguments =
        ["--chart-search-root=charts", "--sort-values-order=file", "--dry-run", "--log-level=warning"];
    let made = tool("bin/helm-docs", arguments).stdout();
    let readme = fs::read_to_string(format!("{CHART}/README.md")).unwrap();
    assert!(
        made.trim() == readme.trim(),
        "run helm-docs --chart-search-root=charts --sort-values-order=file"
    );
}

#[test]
fn every_value_has_a_description() {
    let readme = fs::read_to_string(format!("{CHART}/README.md")).unwrap();
    let rows: Vec<_> = readme
        .lines()
        .skip_while(|line| *line != "## Values")
        .filter(|line| line.starts_with("| "))
        .collect();
    assert!(rows.len() > 80, "{rows:?}");
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        assert!(cells.len() >= 4 && cells[3].trim().len() > 5, "{row}");
    }
}

#[test]
fn the_chart_has_the_version_of_cargo_toml_and_supports_kubernetes_1_32_and_later() {
    let chart = &objects_in(Path::new(&format!("{CHART}/Chart.yaml")))[0];
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["kubeVersion"], ">=1.32.0-0");
    for helm in Helm::BOTH {
        let minimal = super::helm::values("minimal");
        let old = helm.template(&["--values", &minimal, "--kube-version=1.31.9"]);
        assert!(!old.good && old.stderr.contains(">=1.32.0-0"), "{old:?}");
        helm.template(&["--values", &minimal, "--kube-version=1.32.0"]).stdout();
    }
}

#[test]
fn yamllint_reports_nothing() {
    let root = testkit::repository::ROOT;
    let config = format!("{root}/tests/install/chart/yamllint.yaml");
    let (chart, values) = (format!("{CHART}/Chart.yaml"), format!("{CHART}/values.yaml"));
    let golden = format!("{root}/tests/install/chart/golden");
    tool("venv/bin/yamllint", ["--strict", "-c", &config, &chart, &values, VALUES, &golden]).stdout();
}

/// Helm packages the whole directory, except the files of `.helmignore`.
#[test]
fn the_package_contains_only_files_that_an_installation_needs() {
    let dir = testkit::temp_dir("package-");
    let to = dir.path().to_str().unwrap();
    Helm::V3.run(&["package", CHART, "--destination", to]).stdout();
    let archive = format!("{to}/transit-kms-0.1.0.tgz");
    let names = run(command("tar").args(["-tzf", &archive])).stdout();
    for name in ["values.schema.json", "README.md", "files/rules.yaml", "templates/_agent.tpl"] {
        assert!(names.contains(&format!("transit-kms/{name}\n")), "{name}: {names}");
    }
    assert!(!names.contains("gotmpl"), "{names}");
}
