//! The standard process metrics of Prometheus client libraries.

use prometheus::{
    Counter, Gauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Reads `/proc/self` at every scrape. A metric whose value cannot be read is missing from the scrape.
///
/// Names and units: <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in f64")]
    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        let mut add = |name: &str, help: &str, value: f64| {
            if let Ok(gauge) = Gauge::new(name, help) {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        };
        let Ok(process) = procfs::process::Process::myself() else {
            return families;
        };
        if let Ok(open) = process.fd_count() {
            add("process_open_fds", "Open file descriptors.", open as f64);
        }
        if let Ok(limits) = process.limits()
            && let procfs::process::LimitValue::Value(maximum) = limits.max_open_files.soft_limit
        {
            add("process_max_fds", "Maximum number of open file descriptors.", maximum as f64);
        }
        if let Ok(stat) = process.stat() {
            let ticks = procfs::ticks_per_second() as f64;
            let busy = (stat.utime + stat.stime) as f64 / ticks;
            add(
                "process_resident_memory_bytes",
                "Resident memory in bytes.",
                (stat.rss * procfs::page_size()) as f64,
            );
            add("process_virtual_memory_bytes", "Virtual memory in bytes.", stat.vsize as f64);
            add("process_threads", "Number of threads.", stat.num_threads as f64);
            if let Ok(boot) = procfs::boot_time_secs() {
                let started = boot as f64 + stat.starttime as f64 / ticks;
                add("process_start_time_seconds", "Unix time at which the process started.", started);
            }
            if let Ok(cpu) = Counter::new("process_cpu_seconds_total", "User and system CPU time in seconds.")
            {
                cpu.inc_by(busy);
                families.extend(cpu.collect());
            }
        }
        families
    }
}
