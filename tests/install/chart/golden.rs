//! Compares the output of each value set with its golden file. `TRANSIT_KMS_BLESS=1` rewrites the golden files.

use std::{fs, path::PathBuf};

use super::{
    CHART,
    helm::{Helm, sets},
    objects::{objects, objects_in, one},
};

/// Replaces the content of files of the chart in golden files.
const FILE_PLACEHOLDER: &str = "# (from a file of the chart)";

#[test]
fn helm_3_and_4_render_every_value_set_as_its_golden_file() {
    let bless = std::env::var_os("TRANSIT_KMS_BLESS").is_some();
    let mut changed = Vec::new();
    for set in sets() {
        let text = Helm::V3.render(&set);
        assert_eq!(text, Helm::V4.render(&set), "{set}: Helm 3 and 4 differ");
        let (text, file) = (without_files(&text), golden(&set));
        if bless {
            fs::write(&file, &text).unwrap();
        }
        if fs::read_to_string(&file).unwrap_or_default() != text {
            changed.push(set);
        }
    }
    assert!(changed.is_empty(), "{changed:?} changed: set TRANSIT_KMS_BLESS=1 and read the git diff");
}

#[test]
fn every_golden_file_has_a_value_set() {
    let folder = fs::read_dir(golden("minimal").parent().unwrap()).unwrap();
    assert_eq!(folder.count(), sets().len());
}

#[test]
fn rendered_rules_and_dashboard_match_the_files_of_the_chart() {
    let rendered = objects(&Helm::V3.render("monitored"));
    let rules = objects_in(&PathBuf::from(format!("{CHART}/files/rules.yaml")));
    assert_eq!(rules.len(), 1);
    assert_eq!(one(&rendered, "PrometheusRule")["spec"], rules[0]);
    let dashboard = fs::read_to_string(format!("{CHART}/files/dashboard.json")).unwrap();
    let shown = rendered.iter().find_map(|object| object["data"]["transit-kms.json"].as_str());
    assert_eq!(shown.unwrap().trim(), dashboard.trim());
}

/// Removes the rules and the dashboard, so that golden files do not change with them. The test above compares them.
fn without_files(text: &str) -> String {
    let mut kept = String::new();
    let mut cut = false;
    for line in text.lines() {
        if line == "---" {
            cut = false;
        }
        if !cut {
            kept.push_str(line);
            kept.push('\n');
        }
        let rule = line == "spec:" && kept.rsplit("---\n").next().unwrap().contains("kind: PrometheusRule\n");
        if rule || line == "  transit-kms.json: |" {
            kept.push_str(&format!("    {FILE_PLACEHOLDER}\n"));
            cut = true;
        }
    }
    kept
}

fn golden(set: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/install/chart/golden/{set}.yaml", testkit::repository::ROOT))
}
