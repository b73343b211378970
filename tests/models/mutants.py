#!/usr/bin/env python3
"""Shows that each model of src can fail: mutants.py <build folder> [part of a name ...]

Each mutant is a change of the code that a careless hand could make, and the test that must notice it. The sources are
copied, changed and tested there. A mutant that survives, or whose text is not in the sources any more, is an error.
"""
import os
import pathlib
import shutil
import subprocess
import sys

SHARED, BUFFERS, THREADS = "src/engine/shared.rs", "src/engine/buffers.rs", "src/driver/threads.rs"
ADMIT, SECONDS, READER, SETTLE = "src/engine/admit.rs", "src/engine/seconds.rs", "src/reader.rs", "src/engine/settle.rs"
PROPERTY = "engine::property::random_programs_keep_the_guarantees"

# Name, test that fails, file, (old, new) ...
MUTANTS = [
    ("sleep_without_a_swap", "a_message_is_never_slept_over", SHARED,
     ("self.sleep.swap(SLEEPING, Ordering::SeqCst)", "self.sleep.store(SLEEPING, Ordering::Relaxed)")),
    ("sleep_without_a_second_look", "a_message_is_never_slept_over", SHARED,
     ("let quiet = self.inbox.is_empty() &&", "let quiet = true &&")),
    ("awake_by_a_store", "a_message_is_never_slept_over", SHARED,
     ("if self.sleep.load(Ordering::Relaxed) == SLEEPING {\n            self.sleep.swap(AWAKE, Ordering::SeqCst);",
      "{\n            self.sleep.store(AWAKE, Ordering::Relaxed);")),
    ("wake_by_a_look", "a_message_is_never_slept_over", SHARED,
     ("if self.sleep.swap(AWAKE, Ordering::SeqCst) == SLEEPING", "if self.sleep.load(Ordering::SeqCst) == SLEEPING")),
    ("tell_before_the_push", "a_message_is_never_slept_over", SHARED,
     ("self.inbox.push(message);\n        self.wake();", "self.wake();\n        self.inbox.push(message);")),
    ("nudge_not_looked_for", "a_nudge_ends_a_wait", SHARED,
     ("self.inbox.is_empty() && !self.nudged.load(Ordering::SeqCst)", "self.inbox.is_empty()")),
    ("nudge_after_the_wake", "a_nudge_ends_a_wait", SHARED,
     ("self.nudged.store(true, Ordering::SeqCst);\n        self.wake();",
      "self.wake();\n        self.nudged.store(true, Ordering::SeqCst);")),
    ("rest_without_sleep", "a_message_makes_the_descriptor_readable", "src/engine/embed.rs",
     ("more || !shared.prepare_sleep()", "more")),
    ("close_by_a_look", "what_was_let_in_before_a_close_is_in_the_inbox", SHARED,
     ("while self.entering.fetch_add(0, Ordering::SeqCst) != 0", "while self.entering.load(Ordering::Relaxed) != 0")),
    ("close_without_waiting", "what_was_let_in_before_a_close_is_in_the_inbox", SHARED,
     ("while self.entering.fetch_add(0, Ordering::SeqCst) != 0", "while false")),
    ("owner_let_go_relaxed", "an_owner_is_alone", SHARED,
     ("self.owner.store(if dead { DEAD } else { NOBODY }, Ordering::Release)",
      "self.owner.store(if dead { DEAD } else { NOBODY }, Ordering::Relaxed)")),
    ("foreign_slot_kept_in_stock", "a_foreign_slot_has_one_holder", SHARED,
     ("        Some(first)\n", "        self.foreign.push(first);\n        Some(first)\n")),
    ("id_before_its_descriptor", "cancelling_a_descriptor_cancels_nothing_else", ADMIT,
     ("        let slot = &mut self.core.slots[index];\n        // Without arguments",
      "        let id = self.core.slots.open(index);\n        let slot = &mut self.core.slots[index];\n        // Without arguments"),
     ("        let id = self.core.slots.open(index);\n        (id, self", "        (id, self")),
    ("early_cancel_lost", "a_foreign_operation_ends_once", ADMIT,
     ("self.early_cancels.push(id);", "")),
    ("early_cancel_not_looked_for", "a_foreign_operation_ends_once", ADMIT,
     ("if !self.early_cancels.is_empty() {", "if false {")),
    ("return_by_a_store", "a_buffer_comes_back_once", BUFFERS,
     ("self.holders[number].compare_exchange(holder, RETURNED, Ordering::AcqRel, Ordering::Relaxed).is_err()",
      "{ self.holders[number].store(RETURNED, Ordering::Release); false }")),
    ("return_heard_by_a_store", "a_buffer_comes_back_once", BUFFERS,
     ("self.announced.swap(false, Ordering::SeqCst)", "self.announced.store(false, Ordering::Relaxed)")),
    ("return_announced_first", "a_buffer_comes_back_once", BUFFERS,
     ("        self.returned.push((number as u32, holder));\n", ""),
     ("            self.shared.tell(Message::Returned);\n        }\n",
      "            self.shared.tell(Message::Returned);\n        }\n        self.returned.push((number as u32, holder));\n")),
    ("pool_freed_by_a_look", "a_pool_is_freed_or_used", BUFFERS,
     ("self.use_word.compare_exchange(0, RETIRED, Ordering::SeqCst, Ordering::SeqCst).is_ok()",
      "self.use_word.load(Ordering::SeqCst) == 0 && { self.use_word.store(RETIRED, Ordering::SeqCst); true }")),
    ("second_not_counted", "a_second_descriptor_is_found_until_it_is_removed", SECONDS,
     ("        if fd >= 0 && set.insert((fd, id)) {\n            self.count.store(set.len(), Ordering::Release);",
      "        if fd >= 0 && set.insert((fd, id)) {")),
    ("job_dropped_by_a_store", "a_job_runs_or_is_dropped", THREADS,
     ("if job.state.compare_exchange(QUEUED, DROPPED, Ordering::AcqRel, Ordering::Acquire).is_ok() {",
      "if job.state.load(Ordering::Acquire) == QUEUED {\n            job.state.store(DROPPED, Ordering::Release);")),
    ("job_popped_and_not_waited_for", "a_job_runs_or_is_dropped", THREADS,
     ("while job.popped.load(Ordering::Acquire)", "while false")),
    ("job_left_in_its_queue", "a_job_runs_or_is_dropped", THREADS,
     ("queue.remove(position);", "")),
    ("job_published_relaxed", "two_jobs_are_collected", THREADS,
     ("compare_exchange_weak(head, at, Ordering::SeqCst, Ordering::Relaxed)",
      "compare_exchange_weak(head, at, Ordering::Relaxed, Ordering::Relaxed)")),
    ("job_published_by_a_store", "two_jobs_are_collected", THREADS,
     ("match self.done.compare_exchange_weak(head, at, Ordering::SeqCst, Ordering::Relaxed) {",
      "self.done.store(at, Ordering::SeqCst);\n            match Ok(()) {")),
    ("job_done_and_nobody_woken", "two_jobs_are_collected", THREADS, ("            shared.wake();\n", "")),
    ("thread_leaves_with_work_there", "a_thread_that_leaves_leaves_no_work_behind", THREADS,
     ("if timed_out && queues.pool.is_empty() && (", "if timed_out && (true || ")),
    ("call_not_interrupted", "a_call_that_waits_is_interrupted", THREADS,
     ("sys::thread::interrupt(job.thread.load(Ordering::SeqCst));", "")),
    ("job_abandoned_by_a_store", "an_abandoned_job_is_freed_once", THREADS,
     ("if job.state.compare_exchange(RUNNING, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_err() {",
      "job.state.store(ABANDONED, Ordering::Release);\n        if false {")),
    ("job_abandoned_and_not_freed", "an_abandoned_job_is_freed_once", THREADS,
     ("drop(unsafe { Box::from_raw(at) });", "let _ = unsafe { &*at };")),
    ("lane_not_woken", "one_lane_reads_all", READER,
     ("        self.wake(lane);\n        given", "        given")),
    ("block_ready_and_not_told", "one_lane_reads_all", READER,
     ("        }\n        self.signal();\n    }\n\n    /// Reads end in any order",
      "        }\n    }\n\n    /// Reads end in any order")),
    ("lanes_told_before_they_are_to_leave", "one_lane_reads_all", READER,
     ("        self.lock().leaving = true;\n        self.lanes.iter().for_each(|lane| lane.nudge());",
      "        self.lanes.iter().for_each(|lane| lane.nudge());\n        self.lock().leaving = true;")),
    ("cancel_told_unasked", PROPERTY, SETTLE,
     ("libc::ECANCELED if !stopping => self.driver.start_by_attempt(&mut self.core, index),",
      "libc::ECANCELED if !stopping => return Some(result),")),
    ("late_result_taken_for_a_cancel", PROPERTY, SETTLE,
     ("let mut result = outcome.result;", "let mut result = if stopping { -i64::from(libc::ECANCELED) } else { outcome.result };")),
    ("full_goes_on_after_a_cancel", PROPERTY, SETTLE,
     ("            if stopping {\n                return Some(self.conclude(index, -i64::from(libc::ECANCELED), None));\n            }\n            self.core.counters().rearms.add(1);",
      "            self.core.counters().rearms.add(1);")),
    ("released_with_the_first_notification", PROPERTY, SETTLE,
     ("let last = side.owed <= 0;", "let last = true;")),
    ("lend_max_off_by_one", PROPERTY, SETTLE, ("side.lent >= side.lend_max", "side.lent > side.lend_max")),
    ("buffer_kept_at_the_end", PROPERTY, SETTLE,
     ("            } else {\n                self.recycle(index, buffer);\n            }", "            }")),
    ("close_does_not_know_the_inbox", PROPERTY, ADMIT, ("        if !self.taking_in {\n", "        if false {\n")),
    ("close_waits_for_what_comes_behind", PROPERTY, ADMIT,
     ("match listed && self.core.descriptors.is_closing(fd)", "match listed && false && self.core.descriptors.is_closing(fd)")),
    ("interruption_taken_for_a_refusal", PROPERTY, SETTLE,
     ("libc::EINTR => self.start_again(index),", "libc::EINTR => self.driver.start(&mut self.core, index),")),
    ("drain_does_not_wait", PROPERTY, "src/engine/group.rs",
     ("let is_drain = |member: &Member| member.flags & UPCALL_DRAIN != 0;", "let is_drain = |_: &Member| false;")),
    ("idle_limit_counts_from_nothing", PROPERTY, ADMIT,
     ("self.arm(index, at.saturating_add(operation.timeout_ns), operation.timeout_ns);",
      "self.arm(index, at, operation.timeout_ns);")),
]


def main():
    build, wanted = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    root = pathlib.Path(__file__).resolve().parents[2]
    copy = build / "mutant"
    survivors, count = [], 0
    for name, test, file, *changes in MUTANTS:
        if wanted and not any(part in name for part in wanted):
            continue
        count += 1
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for part in ["src", "Cargo.toml", "Cargo.lock", "build.rs"]:
            (shutil.copytree if (root / part).is_dir() else shutil.copy2)(root / part, copy / part)
        # A manifest with tests names their files.
        (copy / "tests").mkdir()
        shutil.copy2(root / "tests" / "header.rs", copy / "tests")
        text = (copy / file).read_text()
        for old, new in changes:
            if text.count(old) == 0:
                sys.exit(f"{name}: not in {file}: {old!r}")
            text = text.replace(old, new, 1)
        (copy / file).write_text(text)
        # Compiled quickly: what fails, fails soon.
        environment = dict(os.environ, RUST_BACKTRACE="0", PROPTEST_MAX_SHRINK_ITERS="0", CARGO_PROFILE_MODELS_OPT_LEVEL="0")
        target = build / "mutants" / "property"
        if test != PROPERTY:
            environment["RUSTFLAGS"] = "--cfg loom"
            target = build / "mutants" / "loom"
        cargo = ["cargo", "test", "--quiet", "--locked", "--profile", "models", "--lib", "--target-dir", target]
        built = subprocess.run([*cargo, "--no-run"], cwd=copy, env=environment, capture_output=True, text=True)
        if built.returncode != 0:
            sys.exit(f"{name}: does not compile\n{built.stderr}")
        try:
            tested = subprocess.run([*cargo, "--", test], cwd=copy, env=environment, capture_output=True, text=True, timeout=900)
            noticed = tested.returncode != 0
            if "running 0 tests" in tested.stdout:
                sys.exit(f"{name}: there is no {test}")
        except subprocess.TimeoutExpired:
            noticed = True  # a hang
        print(f"{'noticed ' if noticed else 'SURVIVES'} {name} ({test})", flush=True)
        survivors += [] if noticed else [name]
    shutil.rmtree(copy, ignore_errors=True)
    print(f"{count - len(survivors)} of {count} mutants were noticed")
    return 1 if survivors or count == 0 else 0


sys.exit(main())
