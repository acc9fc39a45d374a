//! A model of a disk that forgets whatever was not synced.
//!
//! The content of a file is durable as of its last sync; an entry of a folder as of the last sync of
//! that folder, and never because of a sync of the file. That is what POSIX promises, and less than any
//! file system in use keeps. What a kernel wrote by itself in between is among the [`Disk::after_power_loss`].

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::power_loss_trace::Step;

/// What stands below the root: a folder, or a file, which may have several names.
pub type Tree = BTreeMap<PathBuf, Option<(Id, Vec<u8>)>>;

/// A file or a folder, whatever its names.
pub type Id = usize;

enum Node {
    File { now: Vec<u8>, durable: Vec<u8> },
    Folder { now: Entries, durable: Entries, pending: Vec<Change> },
}

type Entries = BTreeMap<String, Id>;

/// What one call did to a folder: names that came, and names that went. It is kept or lost as a whole.
type Change = Vec<(String, Option<Id>)>;

/// An open file, shared by its duplicates.
#[derive(Debug, Clone, Copy)]
struct Opened {
    node: Id,
    position: usize,
}

pub struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    opened: Vec<Opened>,
    descriptors: HashMap<i32, usize>,
}

const ROOT: Id = 0;

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Lost,
    Kept,
    /// Of one folder the first so many changes.
    First(Id, usize),
    /// Of one folder this change and no other.
    Only(Id, usize),
}

impl Disk {
    /// The disk as it stands at `root`, all of it durable.
    pub fn of(root: &Path) -> Disk {
        let mut disk = Disk {
            root: root.to_owned(),
            nodes: Vec::new(),
            opened: Vec::new(),
            descriptors: HashMap::new(),
        };
        disk.take(root, &mut HashMap::new());
        disk
    }

    /// Takes what stands at `path`; `taken` are files by their inode, for those with several names.
    fn take(&mut self, path: &Path, taken: &mut HashMap<u64, Id>) -> Id {
        let id = self.nodes.len();
        if path.is_file() {
            let inode = fs::metadata(path).expect("there").ino();
            if let Some(known) = taken.insert(inode, id) {
                taken.insert(inode, known);
                return known;
            }
            let bytes = fs::read(path).expect("readable");
            self.nodes.push(Node::File { now: bytes.clone(), durable: bytes });
            return id;
        }
        self.nodes.push(Node::Folder { now: Entries::new(), durable: Entries::new(), pending: Vec::new() });
        let mut entries = Entries::new();
        for entry in fs::read_dir(path).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            entries.insert(name, self.take(&entry.path(), taken));
        }
        self.nodes[id] = Node::Folder { now: entries.clone(), durable: entries, pending: Vec::new() };
        id
    }

    /// Takes a step. Whether it can have changed what a power loss leaves.
    pub fn apply(&mut self, step: &Step) -> bool {
        match step {
            Step::Open { path, fd, creates, truncates } => return self.open(path, *fd, *creates, *truncates),
            Step::Duplicate { fd, as_fd } => {
                if let Some(&opened) = self.descriptors.get(fd) {
                    self.descriptors.insert(*as_fd, opened);
                }
                return false;
            }
            Step::Close { fd } => {
                self.descriptors.remove(fd);
                return false;
            }
            Step::Seek { fd, to } => {
                if let Some(&opened) = self.descriptors.get(fd) {
                    self.opened[opened].position = *to as usize;
                }
                return false;
            }
            Step::Write { fd, bytes } => {
                let Some(&opened) = self.descriptors.get(fd) else { return false };
                let at = self.opened[opened].position;
                self.opened[opened].position += bytes.len();
                self.write(self.opened[opened].node, at, bytes);
            }
            Step::WriteAt { fd, bytes, at } => {
                let Some(node) = self.node_of(*fd) else { return false };
                self.write(node, *at as usize, bytes);
            }
            Step::Cut { fd, to } => {
                let Some(node) = self.node_of(*fd) else { return false };
                self.file(node).0.resize(*to as usize, 0);
            }
            Step::Sync { fd } => {
                let Some(node) = self.node_of(*fd) else { return false };
                self.sync(node);
            }
            Step::Rename { from, to } => {
                let (Some((folder, from)), Some((other, to))) = (self.place(from), self.place(to)) else {
                    return false;
                };
                assert_eq!(folder, other, "a rename from one folder to another is not modelled");
                let node = self.entry(folder, &from);
                self.change(folder, vec![(from, None), (to, Some(node))]);
            }
            Step::Link { from, to } => {
                let (Some((from_folder, from)), Some((folder, to))) = (self.place(from), self.place(to))
                else {
                    return false;
                };
                let node = self.entry(from_folder, &from);
                self.change(folder, vec![(to, Some(node))]);
            }
            Step::Remove { path } => {
                let Some((folder, name)) = self.place(path) else { return false };
                self.change(folder, vec![(name, None)]);
            }
            Step::MakeFolder { path } => {
                let Some((folder, name)) = self.place(path) else { return false };
                let node = self.nodes.len();
                self.nodes.push(Node::Folder {
                    now: Entries::new(),
                    durable: Entries::new(),
                    pending: Vec::new(),
                });
                self.change(folder, vec![(name, Some(node))]);
            }
        }
        true
    }

    fn open(&mut self, path: &Path, fd: i32, creates: bool, truncates: bool) -> bool {
        self.descriptors.remove(&fd);
        let (node, is_new) = if path == self.root {
            (ROOT, false)
        } else {
            let Some((folder, name)) = self.place(path) else { return false };
            match self.entries(folder).get(&name) {
                Some(&node) => (node, false),
                None => {
                    assert!(creates, "{} was opened and is not there", path.display());
                    let node = self.nodes.len();
                    self.nodes.push(Node::File { now: Vec::new(), durable: Vec::new() });
                    self.change(folder, vec![(name, Some(node))]);
                    (node, true)
                }
            }
        };
        if truncates {
            self.file(node).0.clear();
        }
        self.descriptors.insert(fd, self.opened.len());
        self.opened.push(Opened { node, position: 0 });
        is_new || truncates
    }

    fn node_of(&self, fd: i32) -> Option<Id> {
        self.descriptors.get(&fd).map(|&opened| self.opened[opened].node)
    }

    fn file(&mut self, node: Id) -> (&mut Vec<u8>, &mut Vec<u8>) {
        match &mut self.nodes[node] {
            Node::File { now, durable } => (now, durable),
            Node::Folder { .. } => panic!("a folder was used as a file"),
        }
    }

    fn write(&mut self, node: Id, at: usize, bytes: &[u8]) {
        let (now, _) = self.file(node);
        now.resize(now.len().max(at + bytes.len()), 0);
        now[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn sync(&mut self, node: Id) {
        match &mut self.nodes[node] {
            Node::File { now, durable } => durable.clone_from(now),
            Node::Folder { now, durable, pending } => {
                durable.clone_from(now);
                pending.clear();
            }
        }
    }

    fn entries(&self, folder: Id) -> &Entries {
        match &self.nodes[folder] {
            Node::Folder { now, .. } => now,
            Node::File { .. } => panic!("a file was used as a folder"),
        }
    }

    fn entry(&self, folder: Id, name: &str) -> Id {
        *self.entries(folder).get(name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    fn change(&mut self, folder: Id, change: Change) {
        let Node::Folder { now, pending, .. } = &mut self.nodes[folder] else { panic!("a file") };
        keep(now, &change);
        pending.push(change);
    }

    /// The folder and the name of a path; none for what is not below the root.
    fn place(&self, path: &Path) -> Option<(Id, String)> {
        assert!(path.is_absolute(), "the model knows no working directory: {}", path.display());
        let below = path.strip_prefix(&self.root).ok()?;
        let name = below.file_name()?.to_str().expect("UTF-8").to_owned();
        let folders = below.parent().into_iter().flat_map(Path::components);
        let folder =
            folders.fold(ROOT, |folder, part| self.entry(folder, part.as_os_str().to_str().expect("UTF-8")));
        Some((folder, name))
    }

    /// Every state in which the power could leave the disk now: all that is not synced lost or kept, and
    /// of one folder any first part of its changes, or any single one.
    pub fn after_power_loss(&self) -> Vec<Tree> {
        let mut states =
            vec![self.tree(Entry::Lost, false), self.tree(Entry::Kept, false), self.tree(Entry::Kept, true)];
        for (folder, node) in self.nodes.iter().enumerate() {
            let Node::Folder { pending, .. } = node else { continue };
            for at in 0..pending.len() {
                states.push(self.tree(Entry::First(folder, at), false));
                states.push(self.tree(Entry::Only(folder, at), false));
            }
        }
        states
    }

    fn tree(&self, entry: Entry, keeps_data: bool) -> Tree {
        let mut tree = Tree::new();
        self.walk(ROOT, Path::new(""), entry, keeps_data, &mut tree);
        tree
    }

    fn walk(&self, node: Id, path: &Path, entry: Entry, keeps_data: bool, tree: &mut Tree) {
        match &self.nodes[node] {
            Node::File { now, durable } => {
                let content = if keeps_data { now } else { durable };
                tree.insert(path.to_owned(), Some((node, content.clone())));
            }
            Node::Folder { now, durable, pending } => {
                let mut entries = durable.clone();
                match entry {
                    Entry::Kept => entries.clone_from(now),
                    Entry::First(folder, count) if folder == node => {
                        pending[..count].iter().for_each(|change| keep(&mut entries, change));
                    }
                    Entry::Only(folder, at) if folder == node => keep(&mut entries, &pending[at]),
                    _ => {}
                }
                tree.insert(path.to_owned(), None);
                for (name, node) in entries {
                    self.walk(node, &path.join(name), entry, keeps_data, tree);
                }
            }
        }
    }
}

fn keep(entries: &mut Entries, change: &Change) {
    for (name, node) in change {
        match node {
            Some(node) => drop(entries.insert(name.clone(), *node)),
            None => drop(entries.remove(name)),
        }
    }
}

/// Writes a state out below `root`. The index of a log (`-shm`) is written through memory, which no
/// trace shows, and made anew by whoever opens the database first: it is left out.
pub fn write_out(tree: &Tree, root: &Path) {
    let mut written: HashMap<Id, PathBuf> = HashMap::new();
    for (path, content) in tree {
        let place = root.join(path);
        let Some((node, bytes)) = content else {
            fs::create_dir_all(place).expect("made");
            continue;
        };
        if path.to_string_lossy().ends_with("-shm") {
            continue;
        }
        match written.get(node) {
            Some(first) => fs::hard_link(first, place).expect("linked"),
            None => {
                fs::write(&place, bytes).expect("written");
                written.insert(*node, place);
            }
        }
    }
}

#[test]
fn what_was_not_synced_is_forgotten() {
    let path = |name: &str| Path::new("/root").join(name);
    let mut disk = Disk {
        root: path(""),
        nodes: vec![Node::Folder { now: Entries::new(), durable: Entries::new(), pending: Vec::new() }],
        opened: Vec::new(),
        descriptors: HashMap::new(),
    };
    let all = |disk: &Disk| {
        let show = |tree: Tree| -> Vec<String> {
            let files = tree.into_iter().filter_map(|(path, content)| {
                Some(format!("{} {}", path.display(), String::from_utf8(content?.1).expect("UTF-8")))
            });
            files.collect()
        };
        disk.after_power_loss().into_iter().map(show).collect::<Vec<_>>()
    };
    disk.apply(&Step::Open { path: path("one"), fd: 3, creates: true, truncates: false });
    disk.apply(&Step::Write { fd: 3, bytes: b"con".to_vec() });
    disk.apply(&Step::Write { fd: 3, bytes: b"tent".to_vec() });
    assert_eq!(
        all(&disk),
        [vec![], vec!["one ".to_owned()], vec!["one content".to_owned()], vec![], vec!["one ".to_owned()]]
    );
    disk.apply(&Step::Sync { fd: 3 });
    disk.apply(&Step::Rename { from: path("one"), to: path("two") });
    let (one, two) = (vec!["one content".to_owned()], vec!["two content".to_owned()]);
    assert_eq!(all(&disk), [vec![], two.clone(), two.clone(), vec![], one.clone(), one, two.clone()]);
    disk.apply(&Step::Open { path: path(""), fd: 4, creates: false, truncates: false });
    disk.apply(&Step::Sync { fd: 4 });
    assert_eq!(all(&disk), [two.clone(), two.clone(), two]);
}
