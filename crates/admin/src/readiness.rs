//! Whether a node is ready, and if not, why not: named conditions, each owned by whoever knows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The conditions of a node. Cheap to clone. With no condition named, it is not ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
    remarks: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Says of one condition that it holds, or why it does not.
    pub fn set(&self, condition: &'static str, holds: bool, reason: &str) {
        let reason = (!holds).then(|| reason.to_owned());
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, reason);
    }

    /// Says something that people should look at, although the node serves; `None`: no more.
    pub fn remark(&self, subject: &'static str, text: Option<String>) {
        let mut remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => remarks.insert(subject, text),
            None => remarks.remove(subject),
        };
    }

    /// What people should look at.
    pub fn remarks(&self) -> Vec<String> {
        let remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        remarks.iter().map(|(subject, text)| format!("{subject}: {text}")).collect()
    }

    /// Whether all conditions hold.
    pub fn is_ready(&self) -> bool {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        !conditions.is_empty() && conditions.values().all(Option::is_none)
    }

    /// Why it is not ready.
    pub fn reasons(&self) -> Vec<String> {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(name, reason): (&&str, &Option<String>)| {
            reason.as_ref().map(|why| format!("{name}: {why}"))
        };
        conditions.iter().filter_map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_condition_holds() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready(), "nobody has said anything yet");
        readiness.set("disks", true, "");
        readiness.set("metadata", false, "no leader");
        assert_eq!(
            (readiness.is_ready(), readiness.reasons()),
            (false, vec!["metadata: no leader".to_owned()])
        );
        readiness.set("metadata", true, "");
        assert!(readiness.is_ready());
        readiness.remark("disks", Some("/a is out".to_owned()));
        assert_eq!((readiness.is_ready(), readiness.remarks().len()), (true, 1));
        readiness.remark("disks", None);
        assert_eq!(readiness.remarks(), Vec::<String>::new());
    }
}
