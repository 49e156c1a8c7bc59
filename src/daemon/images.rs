//! Images: who reads an archive for whom, and what becomes of what was read. The store itself is `host::image_store`.
//!
//! The daemon never touches an archive: a reader that is shut in unpacks it, and reports. Until the one rename that makes
//! an image of it, it is in `tmp/`, where a chore removes it however the import ends. Called by `control` (orders) and
//! `event_loop` (reports and ends of readers).

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use mio::{Interest, Token};

use super::birth::{IDS, chain};
use super::clock;
use super::control::Asked;
use super::log::best_effort;
use super::sources::Source;
use super::state::{Chore, Daemon, Freed, Place};
use super::timers::Timer;
use crate::archive::{Done, Job, Limits, Reading, Report, Task, Totals};
use crate::host::identity::MAPPED_RANGE;
use crate::host::image_store::{Image, ImageStore};
use crate::protocol::control::{Error as Refusal, EventKind, ImageImportReply, ImageImportRequest, ImageInfo};
use crate::protocol::escape;
use crate::protocol::varlink::Reply;
use crate::spec::{ImageName, PoolId, Root, is_image_digest};

/// How many archives are read at once.
const IMPORTS_MAX: usize = 4;
/// Reports that are read in one turn.
const REPORTS_A_TURN: usize = 64;
/// How much of the reason of a failure is in the audit log, in characters.
const CAUSE_CHARS_MAX: usize = 200;
/// The longest sentence of a reader that is passed on, in characters.
const SENTENCE_CHARS_MAX: usize = 1_000;

/// An import under way.
#[derive(Debug)]
pub(super) struct Import {
    reading: Reading,
    /// Of its socket and its pidfd.
    tokens: [Token; 2],
    /// Its directory in `tmp/`.
    unfinished: String,
    /// Its range of ids.
    range: u32,
    wish: ImageImportRequest,
    /// Place and number of who waits for it; `None` if nobody does any more.
    waits: Option<(u32, u64)>,
    /// Who has asked for it.
    asked: Asked,
    read: u64,
    totals: Totals,
    outcome: Option<Result<Box<Done>, String>>,
}

/// The images, and those that are being made.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) store: ImageStore,
    known: BTreeMap<String, Image>,
    imports: BTreeMap<u64, Import>,
    last: u64,
}

impl Images {
    /// Those of a store.
    pub(super) fn new(store: ImageStore) -> Self {
        let mut damaged = Vec::new();
        let found = store.list(&mut damaged).unwrap_or_else(|error| {
            tracing::error!(target: "pool", "read the images: {}", chain(&error));
            Vec::new()
        });
        for name in damaged {
            tracing::error!(target: "pool", "image {name} is damaged and left out: remove its directory and import it again");
        }
        let known = found.into_iter().map(|image| (image.digest.clone(), image)).collect();
        Self { store, known, imports: BTreeMap::new(), last: 0 }
    }

    /// The image that a name or a digest means.
    pub(super) fn find(&self, wanted: &str) -> Option<&Image> {
        self.known.get(wanted).or_else(|| self.known.values().find(|image| image.is(wanted)))
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Image> {
        self.known.values()
    }
}

/// Why an import that was asked for does not begin.
fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::Refused { reason: reason.into() }
}

impl Daemon {
    /// Begins an import for a client; its number.
    pub(super) fn begin_import(
        &mut self,
        wish: ImageImportRequest,
        archive: &OwnedFd,
        asked: Asked,
    ) -> Result<u64, Refusal> {
        if self.images.imports.len() >= IMPORTS_MAX {
            return Err(refused(format!("{IMPORTS_MAX} archives are being read: wait for one of them")));
        }
        if let Some(name) = &wish.name {
            self.check_name(name, wish.replace == Some(true), None)?;
        }
        let failed =
            |cause: String| Refusal::Failed { operation: "import".into(), object: "the archive".into(), cause };
        let (unfinished, root) = self.images.store.begin().map_err(|error| failed(chain(&error)))?;
        let mut chore = unfinished_chore(&unfinished);
        let begun = self.shared.ranges.take().map_err(|error| chain(&error)).and_then(|range| {
            chore.frees = Some(Freed::Range(range));
            let base = self.spec.uid_base.saturating_add(IDS).saturating_add(range.saturating_mul(MAPPED_RANGE));
            let job = Job { parent: std::process::id(), task: Task::Image, limits: Limits::default() };
            let reading = Reading::start(archive.as_fd(), root.as_fd(), base, &job).map_err(|error| chain(&error))?;
            Ok((range, reading))
        });
        let (range, reading) = begun.map_err(|cause| {
            self.chores.push_back(chore);
            failed(cause)
        })?;
        self.images.last = self.images.last.wrapping_add(1);
        let number = self.images.last;
        let tokens = self.watch_reading(number, &reading).map_err(|error| {
            self.end_reading(&reading);
            let frees = Some(Freed::Range(range));
            self.chores.push_back(Chore { frees, ..unfinished_chore(&unfinished) });
            failed(format!("watch the reader of the archive: {error}"))
        })?;
        self.timers.set(clock::after(self.now, self.spec.image_import_timeout), Timer::Import(number));
        let (read, totals) = (0, Totals::default());
        let waits = Some((asked.place, asked.number));
        let import = Import { reading, tokens, unfinished, range, wish, waits, asked, read, totals, outcome: None };
        self.images.imports.insert(number, import);
        Ok(number)
    }

    fn watch_reading(&mut self, number: u64, reading: &Reading) -> std::io::Result<[Token; 2]> {
        let reports = self.sources.add(reading.socket(), Source::Import(number), Interest::READABLE)?;
        match self.sources.add(reading.pidfd().as_fd(), Source::ImportEnd(number), Interest::READABLE) {
            Ok(end) => Ok([reports, end]),
            Err(error) => {
                self.sources.remove(reports, reading.socket());
                Err(error)
            }
        }
    }

    /// Ends a reader and waits for that, which SIGKILL sees to within a scheduling delay; for what cannot wait for the loop.
    fn end_reading(&self, reading: &Reading) {
        best_effort(reading.kill(), "it may have ended by itself");
        best_effort(crate::host::spawn::wait(reading.pidfd()), "it is this daemon's child");
    }

    /// Whether an image may be called this.
    fn check_name(&self, name: &ImageName, replace: bool, digest: Option<&str>) -> Result<(), Refusal> {
        let taken = self.images.find(name.as_str()).is_some_and(|image| Some(image.digest.as_str()) != digest);
        if taken && !replace {
            return Err(refused(format!("image {name} exists: give the new one another name, or --replace it")));
        }
        Ok(())
    }

    /// The reader of an archive reports.
    pub(super) fn on_import(&mut self, number: u64) {
        let Some(import) = self.images.imports.get_mut(&number) else { return };
        for _ in 0..REPORTS_A_TURN {
            let Some(report) = import.reading.report() else { return };
            import.take(report);
        }
        let [reports, _] = import.tokens;
        self.sources.again(reports);
    }

    /// The reader of an archive has ended, or has had its time.
    pub(super) fn on_import_end(&mut self, number: u64) {
        let Some(import) = self.images.imports.get(&number) else { return };
        let ended = match import.reading.ended() {
            Ok(None) => return,
            Ok(Some(ended)) => ended.code.filter(|code| *code == 0).ok_or_else(|| last_line(&ended.stderr)),
            Err(error) => Err(format!("nobody knows how its reader ended: {error}")),
        };
        let Some(mut import) = self.images.imports.remove(&number) else { return };
        while let Some(report) = import.reading.report() {
            import.take(report);
        }
        let [reports, end] = import.tokens;
        self.sources.remove(reports, import.reading.socket());
        self.sources.remove(end, import.reading.pidfd().as_fd());
        let outcome = match (import.outcome.take(), ended) {
            (Some(Ok(done)), Ok(_)) => self.publish(&import, &done),
            (Some(Err(sentence)), _) => Err(sentence),
            (None | Some(Ok(_)), Err(sentence)) => Err(sentence),
            (None, Ok(_)) => Err("its reader ended without a word".to_owned()),
        };
        let removed = Chore { frees: Some(Freed::Range(import.range)), ..unfinished_chore(&import.unfinished) };
        self.chores.push_back(removed);
        self.answer_import(&import, outcome);
    }

    fn answer_import(&mut self, import: &Import, outcome: Result<ImageInfo, String>) {
        let reply = match outcome {
            Ok(image) => {
                let names = image.names.join(", ");
                self.audit_order_more(import.asked, "image_import", &names, &[("digest", &image.digest)]);
                tracing::info!(target: "pool", digest = image.digest, "image {names} is there");
                let (progress, notes) = (import.progress(), notes(&import.totals));
                Reply::last(&ImageImportReply { image: Some(image), notes, ..progress })
            }
            Err(cause) => {
                tracing::warn!(target: "pool", "import an image: {}", escape::text(&cause));
                let object = import.wish.name.as_ref().or(import.wish.default_name.as_ref());
                let object = object.map_or_else(|| "the archive".to_owned(), ToString::to_string);
                let why: String = cause.chars().take(CAUSE_CHARS_MAX).collect();
                self.audit_order_more(import.asked, "image_import_failed", &object, &[("cause", &why)]);
                Refusal::Failed { operation: "import".into(), object, cause }.to_reply()
            }
        };
        if let Some(waits) = import.waits {
            self.control.answer_waiting(waits, &reply, self.now);
        }
    }

    /// Makes an image of what was unpacked.
    fn publish(&mut self, import: &Import, done: &Done) -> Result<ImageInfo, String> {
        if !is_image_digest(&done.digest) {
            return Err("its reader gave it no digest".to_owned());
        }
        done.config.check()?;
        let names = wanted_names(&import.wish, &done.names)?;
        let replace = import.wish.replace == Some(true);
        for name in &names {
            self.check_name(name, replace, Some(&done.digest)).map_err(|refusal| refusal.to_string())?;
        }
        let known = self.images.known.get(&done.digest).cloned();
        let is_new = known.is_none();
        let imported = clock::rfc3339(clock::wall());
        let size = (done.totals.bytes, done.totals.entries);
        let fresh = || Image::new(done.digest.clone(), imported, size, done.config.clone());
        let mut image = known.unwrap_or_else(fresh);
        for name in &names {
            if !image.names.contains(name) {
                image.names.push(name.clone());
            }
        }
        if !is_new || !self.images.store.publish(&import.unfinished, &image).map_err(|error| chain(&error))? {
            self.images.store.rewrite(&image).map_err(|error| chain(&error))?;
        }
        let digest = image.digest.clone();
        self.images.known.insert(digest.clone(), image);
        for name in &names {
            self.take_name(name, &digest);
        }
        self.record(super::events::Happening::new(EventKind::Daemon, format!("image {digest} was imported")));
        self.use_new_images();
        self.images.known.get(&digest).map(|image| self.image_info(image)).ok_or_else(|| "it is gone again".to_owned())
    }

    /// Takes a name from every image but the one that has it now.
    fn take_name(&mut self, name: &ImageName, digest: &str) {
        let others = self.images.known.values().filter(|image| image.digest != digest && image.names.contains(name));
        for mut image in others.cloned().collect::<Vec<_>>() {
            image.names.retain(|own| own != name);
            if let Err(error) = self.images.store.rewrite(&image) {
                tracing::error!(target: "pool", "take the name {name} from an image: {}", chain(&error));
                continue;
            }
            self.images.known.insert(image.digest.clone(), image);
        }
    }

    /// Removes images that have no name and that nobody uses any more.
    pub(super) fn remove_nameless(&mut self) {
        let nameless = self.images.known.values().filter(|image| image.names.is_empty());
        for digest in nameless.map(|image| image.digest.clone()).collect::<Vec<_>>() {
            if self.users_of(&digest).is_empty() {
                best_effort(self.remove_image(&digest), "it is tried again with the next image");
            }
        }
    }

    /// Takes a name away, or a whole image by its digest; the names, and whether the image is gone.
    pub(super) fn forget_image(&mut self, wanted: &str) -> Result<(Vec<String>, Option<String>), Refusal> {
        let Some(mut image) = self.images.find(wanted).cloned() else {
            return Err(Refusal::NotFound { what: format!("image {wanted}") });
        };
        let by_name = ImageName::parse(wanted).ok();
        let names: Vec<ImageName> =
            image.names.iter().filter(|name| by_name.as_ref().is_none_or(|own| own == *name)).cloned().collect();
        image.names.retain(|name| !names.contains(name));
        let by_names = self.pools_by_names(&names);
        let users = if image.names.is_empty() { self.users_of(&image.digest) } else { Vec::new() };
        let all: std::collections::BTreeSet<String> = users.into_iter().chain(by_names).collect();
        if !all.is_empty() {
            let users = all.into_iter().collect::<Vec<_>>().join(", ");
            return Err(refused(format!("image {wanted} is the root of {users}: change that first")));
        }
        let failed = |error: &dyn std::error::Error| {
            let (operation, object) = ("remove".to_owned(), format!("image {wanted}"));
            Refusal::Failed { operation, object, cause: error.to_string() }
        };
        let removed = if image.names.is_empty() {
            self.remove_image(&image.digest).map_err(|error| failed(&error))?;
            Some(image.digest)
        } else {
            self.images.store.rewrite(&image).map_err(|error| failed(&error))?;
            self.images.known.insert(image.digest.clone(), image);
            None
        };
        Ok((names.iter().map(ToString::to_string).collect(), removed))
    }

    fn remove_image(&mut self, digest: &str) -> Result<(), crate::host::image_store::StoreError> {
        let waiting = self.images.store.retire(digest)?;
        self.images.known.remove(digest);
        self.chores.push_back(unfinished_chore(&waiting));
        tracing::info!(target: "pool", digest, "image is gone");
        Ok(())
    }

    /// Pools whose configuration names one of these as their root.
    fn pools_by_names(&self, names: &[ImageName]) -> Vec<String> {
        let uses = |root: &Root| match root {
            Root::Image(name) => names.contains(name),
            Root::Host | Root::Empty | Root::Directory(_) => false,
        };
        let pools = self.pools.values().filter(|pool| uses(&pool.spec.root));
        pools.map(|pool| pool.spec.name.to_string()).collect()
    }

    /// Pools and workers that have an image as their root.
    pub(super) fn users_of(&self, digest: &str) -> Vec<String> {
        let pools = self.pools.values().filter(|pool| pool.prepared.image.as_deref() == Some(digest));
        let mut users: Vec<String> = pools.map(|pool| pool.spec.name.to_string()).collect();
        let has = |chore: &Chore| chore.image.as_deref() == Some(digest);
        for (worker, _) in self.live.iter().filter(|(_, live)| has(&live.chore)) {
            let of_pool = self.pools.get(&worker.pool).is_some_and(|pool| users.contains(&pool.spec.name.to_string()));
            if !of_pool {
                users.push(self.worker_name(*worker));
            }
        }
        users
    }

    pub(super) fn image_info(&self, image: &Image) -> ImageInfo {
        ImageInfo {
            names: image.names.iter().map(ToString::to_string).collect(),
            digest: image.digest.clone(),
            created: image.config.created.clone(),
            imported: image.imported.clone(),
            size_bytes: image.size_bytes,
            entries: image.entries,
            used_by: self.users_of(&image.digest),
        }
    }

    /// Has pools go on with the images that their roots now mean, where they had none.
    fn use_new_images(&mut self) {
        let lack = |pool: &super::pool::Pool| matches!(pool.spec.root, Root::Image(_)) && pool.prepared.lacks.is_some();
        let pools: Vec<PoolId> = self.pools.values().filter(|pool| lack(pool)).map(|pool| pool.id).collect();
        for id in pools {
            self.prepare_again(id);
        }
        self.remove_nameless();
    }

    /// How far an import is.
    pub(super) fn import_progress(&self, number: u64) -> ImageImportReply {
        self.images.imports.get(&number).map(Import::progress).unwrap_or_default()
    }

    /// Whether an import has come further than `told`.
    pub(super) fn has_read_more(&self, number: u64, told: u64) -> bool {
        self.images.imports.get(&number).is_some_and(|import| import.read > told)
    }

    /// Who wanted an import is gone: nothing comes of it.
    pub(super) fn cancel_import(&mut self, number: u64) {
        if let Some(import) = self.images.imports.get_mut(&number) {
            import.waits = None;
            import.outcome = Some(Err("nobody waits for it any more".to_owned()));
            best_effort(import.reading.kill(), "it has just ended");
        }
    }

    /// An import has had its time.
    pub(super) fn on_import_timeout(&mut self, number: u64) {
        if let Some(import) = self.images.imports.get_mut(&number) {
            let most = humantime::format_duration(self.spec.image_import_timeout);
            let sentence = format!("it was not read within {most}, which is `image_import_timeout`");
            import.outcome = Some(Err(sentence));
            best_effort(import.reading.kill(), "it has just ended");
        }
    }

    /// Ends all imports at once: this process ends, or becomes another program. What they leave is in `tmp/`.
    pub(super) fn end_imports(&mut self, reason: &str) {
        for (_, import) in std::mem::take(&mut self.images.imports) {
            self.end_reading(&import.reading);
            let [reports, end] = import.tokens;
            self.sources.remove(reports, import.reading.socket());
            self.sources.remove(end, import.reading.pidfd().as_fd());
            let frees = Some(Freed::Range(import.range));
            self.chores.push_back(Chore { frees, ..unfinished_chore(&import.unfinished) });
            self.answer_import(&import, Err(reason.to_owned()));
        }
    }

    /// The import whose reader has this pid, for whoever reaps everything.
    pub(super) fn import_of(&self, pid: i32) -> Option<u64> {
        let is = |import: &Import| {
            crate::host::spawn::pid_of(import.reading.pidfd()).is_some_and(|own| i64::from(own) == i64::from(pid))
        };
        self.images.imports.iter().find(|(_, import)| is(import)).map(|(number, _)| *number)
    }
}

impl Import {
    fn progress(&self) -> ImageImportReply {
        ImageImportReply {
            read_bytes: self.read,
            written_bytes: self.totals.bytes,
            entries: self.totals.entries,
            image: None,
            notes: Vec::new(),
        }
    }

    /// Takes in what the reader says. Nothing counts after its last word, or ours.
    fn take(&mut self, report: Report) {
        if self.outcome.is_some() {
            return;
        }
        match report {
            Report::Progress { read, totals } => (self.read, self.totals) = (read, totals),
            Report::Done(done) => {
                self.totals = done.totals;
                self.outcome = Some(Ok(done));
            }
            // It was not asked to pack.
            Report::Packed(_) => {}
            Report::Refused(sentence) => {
                self.outcome = Some(Err(sentence.chars().take(SENTENCE_CHARS_MAX).collect()));
            }
        }
    }
}

fn unfinished_chore(name: &str) -> Chore {
    Chore { trees: vec![(Place::Image, name.to_owned())], ..Chore::default() }
}

/// What an image is to be called: what the caller says, else what the archive says, else what the caller says otherwise.
fn wanted_names(wish: &ImageImportRequest, own: &[String]) -> Result<Vec<ImageName>, String> {
    if let Some(name) = &wish.name {
        return Ok(vec![name.clone()]);
    }
    let own: Result<Vec<ImageName>, _> = own.iter().take(16).map(|name| ImageName::parse(name)).collect();
    let own = own.map_err(|error| format!("the name that it gives itself: {error}; say another one by --name"))?;
    match (own.is_empty(), &wish.default_name) {
        (false, _) => Ok(own),
        (true, Some(name)) => Ok(vec![name.clone()]),
        (true, None) => Err("it has no name: say one by --name".to_owned()),
    }
}

/// What was left out, for people.
fn notes(totals: &Totals) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    };
    note(totals.devices, "devices were left out: workers have a /dev of their own");
    note(totals.set_ids, "files lost their set-user-id or set-group-id bit, which has no effect in workers");
    note(totals.xattrs, "extended attributes were left out");
    notes
}

/// What a reader that was killed said last.
fn last_line(stderr: &str) -> String {
    match stderr.lines().last() {
        Some(line) => format!("its reader ended: {}", line.chars().take(200).collect::<String>()),
        None => "its reader was killed: it took too much memory or time, or somebody ended it".to_owned(),
    }
}
