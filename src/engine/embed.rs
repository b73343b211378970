//! The loop inside another event loop: one epoll set that is readable, by level, whenever a turn that does not wait would do
//! anything. In it are the loop's own eventfd (submissions, posts, left-overs), a timerfd (deadlines) and the driver's
//! source of completions.

use super::shared::Shared;
use crate::sys;

/// See the module.
pub(crate) struct Embed {
    set: i32,
    timer: i32,
    armed_for: u64,
    signalled: bool,
}

impl Embed {
    pub fn new(shared: &Shared, source: i32) -> Result<Embed, i32> {
        let opened = |fd: i64| if fd < 0 { Err(-fd as i32) } else { Ok(fd as i32) };
        let mut embed = Embed { set: -1, timer: -1, armed_for: 0, signalled: false };
        embed.set = opened(sys::epoll_create())?;
        embed.timer = opened(sys::timerfd_create())?;
        for fd in [shared.wake, embed.timer, source] {
            opened(sys::epoll_ctl(embed.set, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, 0))?;
        }
        Ok(embed)
    }

    /// What needs no descriptors: when the loop's eventfd is written.
    #[cfg(all(test, loom))]
    pub fn of_nothing() -> Embed {
        Embed { set: -1, timer: -1, armed_for: 0, signalled: false }
    }

    pub fn fd(&self) -> i32 {
        self.set
    }

    /// A turn begins: what made the set readable is about to be looked at.
    pub fn drain(&mut self, shared: &Shared) {
        shared.awake();
        sys::eventfd_drain(shared.wake);
        self.signalled = false;
    }

    /// A turn ends. `more`: the next one would find something at once.
    pub fn rest(&mut self, shared: &Shared, more: bool, next: Option<u64>) {
        self.arm(next);
        // From here on other threads write the eventfd, as if the owner slept.
        if more || !shared.prepare_sleep() {
            // Also when it was written before: the turn may have emptied it.
            self.signalled = false;
            self.signal(shared);
        }
    }

    /// Something was submitted outside a turn.
    pub fn touched(&mut self, shared: &Shared, next: Option<u64>) {
        self.arm(next);
        self.signal(shared);
    }

    fn signal(&mut self, shared: &Shared) {
        if !self.signalled {
            self.signalled = true;
            sys::eventfd_write(shared.wake);
        }
    }

    fn arm(&mut self, next: Option<u64>) {
        let at = next.unwrap_or(0);
        if at != self.armed_for {
            self.armed_for = at;
            sys::timerfd_set(self.timer, at);
        }
    }

    /// Closes this process's copies, in a forked child.
    pub fn close(&self) {
        for fd in [self.set, self.timer] {
            if fd >= 0 {
                sys::close(fd);
            }
        }
    }
}

impl Drop for Embed {
    fn drop(&mut self) {
        self.close();
    }
}
