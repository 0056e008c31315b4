//! What every engine must do, as one suite that any of them can run.
//!
//! It panics at the first difference from a plain `BTreeMap`.

use ashlar_catalog::{OrderedMap, View, Writes};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Runs the suite; `make` gives an empty map each time.
///
/// # Panics
/// Where the engine does not do what [`OrderedMap`] says.
pub fn conformance(make: impl Fn() -> Arc<dyn OrderedMap>) {
    writes_are_read_back(&*make());
    views_do_not_change(&*make());
    scans_keep_to_their_bounds(&*make());
    visitors_may_write_and_break(&*make());
    random_batches_equal_the_model(&*make());
    readers_see_whole_batches(&make());
}

fn put(map: &dyn OrderedMap, rows: &[(&str, &str)]) {
    let mut writes = Writes::default();
    rows.iter()
        .for_each(|(key, value)| writes.put(key.as_bytes().to_vec(), value.as_bytes().to_vec()));
    map.write(writes).expect("takes the batch");
}

/// All rows of a stretch, as a view gives them.
fn rows(view: &dyn View, from: &[u8], to: Option<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    view.scan(from, to, &mut visit).expect("scans");
    rows
}

fn keys(view: &dyn View, from: &[u8], to: Option<&[u8]>) -> Vec<Vec<u8>> {
    rows(view, from, to).into_iter().map(|(key, _)| key).collect()
}

fn writes_are_read_back(map: &dyn OrderedMap) {
    put(map, &[("a", "1"), ("empty", "")]);
    let mut writes = Writes::default();
    writes.remove(b"a".to_vec());
    writes.remove(b"never there".to_vec());
    writes.put(b"b".to_vec(), vec![7; 100_000]);
    let before = map.view();
    map.write(writes).expect("takes the batch");
    let after = map.view();
    assert_eq!(before.get(b"a"), Ok(Some(b"1".to_vec())));
    assert_eq!((after.get(b"a"), after.get(b"empty")), (Ok(None), Ok(Some(Vec::new()))));
    assert_eq!(after.get(b"b"), Ok(Some(vec![7; 100_000])), "a large row comes back whole");
    assert_eq!(after.get(b"never there"), Ok(None));
}

fn views_do_not_change(map: &dyn OrderedMap) {
    let states: Vec<(Box<dyn View>, String)> = (0..5)
        .map(|round| {
            let value = round.to_string();
            put(map, &[("row", &value), (&format!("only {value}"), "x")]);
            let mut gone = Writes::default();
            gone.remove(format!("only {}", round - 1).into_bytes());
            map.write(gone).expect("takes the batch");
            (map.view(), value)
        })
        .collect();
    for (view, value) in &states {
        assert_eq!(view.get(b"row"), Ok(Some(value.clone().into_bytes())));
        let expected = [format!("only {value}").into_bytes(), b"row".to_vec()];
        assert_eq!(keys(&**view, b"", None), expected, "the view of round {value}");
    }
}

fn scans_keep_to_their_bounds(map: &dyn OrderedMap) {
    let names: Vec<Vec<u8>> = (0_u16..1000).map(|at| at.to_be_bytes().to_vec()).collect();
    let mut writes = Writes::default();
    names.iter().for_each(|name| writes.put(name.clone(), name.clone()));
    map.write(writes).expect("takes the batch");
    let view = map.view();
    for (from, to) in [(0, 1000), (1, 129), (128, 256), (500, 501), (7, 7), (9, 3)] {
        let to_key = (to < names.len()).then(|| names[to].as_slice());
        let expected = names.get(from..to.max(from)).unwrap_or_default();
        assert_eq!(keys(&*view, &names[from], to_key), expected, "from {from} to {to}");
    }
    assert_eq!(keys(&*view, &[0xff], None), Vec::<Vec<u8>>::new());
}

fn visitors_may_write_and_break(map: &dyn OrderedMap) {
    put(map, &[("a", "1"), ("b", "2"), ("c", "3")]);
    let mut seen = Vec::new();
    let mut visit = |key: &[u8], _: &[u8]| {
        put(map, &[("aa", "written while scanning")]);
        seen.push(key.to_vec());
        if key == b"b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    map.view().scan(b"", None, &mut visit).expect("scans");
    assert_eq!(seen, [b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(map.view().get(b"aa"), Ok(Some(b"written while scanning".to_vec())));
}

fn random_batches_equal_the_model(map: &dyn OrderedMap) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut model = Model::new();
    let mut held: Vec<(Box<dyn View>, Model)> = Vec::new();
    for _ in 0..300 {
        let mut writes = Writes::default();
        for _ in 0..next() % 20 {
            let key = (next() % 400).to_be_bytes().to_vec();
            let value = (next() % 3 > 0).then(|| next().to_le_bytes().to_vec());
            match &value {
                Some(value) => drop(model.insert(key.clone(), value.clone())),
                None => drop(model.remove(&key)),
            }
            writes.0.insert(key, value);
        }
        map.write(writes).expect("takes the batch");
        match next() % 8 {
            0 => held.push((map.view(), model.clone())),
            1 if !held.is_empty() => {
                let at = usize::try_from(next() % 1000).expect("small") % held.len();
                compare(&held.swap_remove(at));
            }
            2 => map.sync().expect("syncs"),
            _ => {}
        }
    }
    held.push((map.view(), model));
    held.iter().for_each(compare);
}

fn compare((view, model): &(Box<dyn View>, Model)) {
    let expected: Vec<(Vec<u8>, Vec<u8>)> =
        model.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(rows(&**view, b"", None), expected);
    for key in (0_u64..400).map(u64::to_be_bytes) {
        assert_eq!(view.get(&key), Ok(model.get(key.as_slice()).cloned()));
    }
}

/// One thread writes pairs, another reads them: never two halves of different batches.
fn readers_see_whole_batches(map: &Arc<dyn OrderedMap>) {
    put(&**map, &[("left", "0"), ("right", "0")]);
    let (writer, (done, ended)) = (Arc::clone(map), std::sync::mpsc::sync_channel::<()>(1));
    let write = move || {
        for round in 0..500 {
            put(&*writer, &[("left", &round.to_string()), ("right", &round.to_string())]);
        }
        drop(done);
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's thread is nobody's task: it ends within the suite"
    )]
    let thread = std::thread::spawn(write);
    let is_running = || ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty);
    while is_running() {
        let view = map.view();
        assert_eq!(view.get(b"left"), view.get(b"right"));
        let scanned = rows(&*view, b"", None);
        assert_eq!(scanned[0].1, scanned[1].1);
    }
    thread.join().expect("the writer has no reason to panic");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, MemMap, open};
    use std::cell::RefCell;

    fn on_disk(engine: Engine) {
        let dirs = RefCell::new(Vec::new());
        conformance(|| {
            let dir = tempfile::tempdir().expect("makes a directory");
            let map = open(engine, dir.path()).expect("opens");
            dirs.borrow_mut().push(dir);
            map
        });
    }

    fn reopens(engine: Engine) {
        let dir = tempfile::tempdir().expect("makes a directory");
        for round in 0..3 {
            let map = open(engine, dir.path()).expect("opens");
            assert_eq!(keys(&*map.view(), b"", None).len(), round);
            put(&*map, &[(&round.to_string(), "kept")]);
            map.sync().expect("syncs");
        }
    }

    #[test]
    fn memory_conforms() {
        conformance(|| Arc::new(MemMap::default()));
    }

    #[test]
    fn fjall_conforms() {
        on_disk(Engine::Fjall);
    }

    #[test]
    fn sled_conforms() {
        on_disk(Engine::Sled);
    }

    #[test]
    fn fjall_and_sled_keep_what_was_synced() {
        reopens(Engine::Fjall);
        reopens(Engine::Sled);
    }

    #[test]
    fn a_cut_takes_memory_back_to_the_last_sync() {
        let map = MemMap::default();
        put(&map, &[("a", "1"), ("b", "1")]);
        map.sync().expect("syncs");
        let synced = rows(&*map.view(), b"", None);
        put(&map, &[("a", "2"), ("c", "2")]);
        let mut gone = Writes::default();
        gone.remove(b"b".to_vec());
        map.write(gone).expect("takes the batch");
        map.cut();
        assert_eq!(rows(&*map.view(), b"", None), synced);
        put(&map, &[("d", "3")]);
        map.cut();
        assert_eq!(rows(&*map.view(), b"", None), synced, "a second cut goes back as far");
    }
}
