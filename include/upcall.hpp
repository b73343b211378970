/**
 * @file upcall.hpp
 * @brief Upcall for C++20: coroutines over the verbs of upcall.h. Header-only, never part of the ABI.
 *
 *     upcall::task<> greet(upcall::loop &loop, int fd) {
 *         std::array<char, 100> text;
 *         std::size_t size = co_await loop.read(fd, text);                        // throws std::system_error
 *         auto sent = co_await loop.write(fd, std::span(text).first(size)).timeout(1s).result();    // does not
 *         if (!sent)
 *             std::cerr << sent.error().message();
 *     }
 *
 * **Operations.** Every upcall_op_X() of upcall.h is a member X() of upcall::loop, with the same meaning and the same order
 * of arguments; what it does is documented there. It answers an upcall::operation, which does nothing until it is awaited:
 * then it is submitted, and what its arguments point to must live until then (what upcall.h calls copied) or until it has
 * ended (what it calls borrowed). A temporary in the awaiting expression lives long enough.
 *
 * **Results.** `co_await op` gives the value or throws std::system_error; `co_await op.result()` gives an upcall::result,
 * which has the value or the error, and throws nothing. Descriptors, lent buffers and lists come as owners.
 *
 * **Cancellation.** A std::stop_token reaches a task by loop.run(), scope, with_stop_token(), and from the task that awaits
 * it. A request ends what the task waits for: the operation is cancelled, and the task goes on after its final event with
 * ECANCELED.
 *
 * **Lifetimes.** Whatever waits for an operation may be destroyed at any time on the loop's thread: the destructor cancels
 * the operation and returns after its final event. Until then it turns the loop; no coroutine is resumed meanwhile,
 * callbacks of upcall::completion are run. So the kernel never writes into what is gone. Coroutines are resumed between
 * two turns of the loop, never inside one, so that such a destructor can wait. Where it cannot, which is in a callback of an
 * upcall::completion or of post(), or on another thread, std::terminate() is called.
 *
 * **Threads.** A loop, and all that waits for it, belongs to the thread that runs it. Any thread may call post(), stop(),
 * hold(), stats(), request a stop, and give lent buffers back.
 *
 * **Memory.** Starting an operation allocates nothing: its state is in the coroutine's frame. A task is one allocation, its
 * frame; so is each spawn(). A group or with_stop_token() that has tasks to stop makes one std::stop_source.
 *
 * **Exceptions** that leave a spawned task, a completion or a post come out of loop.run() or loop.poll().
 */
#ifndef UPCALL_HPP
#define UPCALL_HPP

#if __cplusplus < 202002L
#error "upcall.hpp needs C++20"
#endif

#include "upcall.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <limits>
#include <memory>
#include <netdb.h>
#include <new>
#include <optional>
#include <ranges>
#include <signal.h>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <sys/wait.h>
#include <system_error>
#include <thread>
#include <tuple>
#include <type_traits>
#include <unistd.h>
#include <utility>
#include <variant>
#include <vector>

/** @brief All of it. The inline namespace keeps two versions of this header in one program apart. */
namespace upcall {
inline namespace v0_1 {

// ---- errors and results ----

namespace detail {

class error_category final : public std::error_category {
public:
    const char *name() const noexcept override { return "upcall"; }
    std::string message(int value) const override {
        return value == 1 ? "an exception that is no std::system_error" : upcall_strerror(-value);
    }
};

} // namespace detail

/** @brief The category of errors that are no errno: -UPCALL_EAI_ constants, with the texts of upcall_strerror(). Since 0.1. */
inline const std::error_category &category() noexcept {
    static const detail::error_category instance;
    return instance;
}

/** @brief The error of a negative `result`: an errno in std::system_category(), or one of category(). Since 0.1. */
inline std::error_code make_error(std::int64_t result) noexcept {
    const int value = static_cast<int>(-result);
    return {value, value > -UPCALL_EAI_BASE ? category() : std::system_category()};
}

namespace detail {

/* What an operation answered: the part of an upcall_event that lasts. */
struct outcome {
    std::int64_t result = -ECANCELED;
    std::uint64_t transferred = 0;
    void *buffer = nullptr;
    std::uint32_t flags = 0;

    outcome() = default;
    explicit outcome(const upcall_event &event)
        : result(event.result), transferred(event.transferred), buffer(event.buffer), flags(event.flags) {}
};

template <class T> using stored = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

inline std::error_code code_of(const std::exception_ptr &exception) noexcept {
    try {
        std::rethrow_exception(exception);
    } catch (const std::system_error &error) {
        return error.code();
    } catch (...) {
        return {1, category()};
    }
}

} // namespace detail

/**
 * @brief A value or an error, as std::expected, with what only an operation knows: the bytes it moved, also when it failed,
 * and whether it was its own deadline. Since 0.1.
 */
template <class T> class [[nodiscard]] result {
public:
    using value_type = T;

    /** @brief A success. */
    template <class... Args>
    explicit result(std::in_place_t, Args &&...args) : value_(std::in_place, std::forward<Args>(args)...) {}
    /** @brief What `outcome`, which has no value, says. */
    explicit result(const detail::outcome &outcome)
        : error_(make_error(outcome.result)), transferred_(outcome.transferred),
          expired_((outcome.flags & UPCALL_EXPIRED) != 0) {}
    /** @brief A failure by an exception, which value() throws again. */
    explicit result(std::exception_ptr exception)
        : exception_(std::move(exception)), error_(detail::code_of(exception_)) {}

    /** @brief Whether there is a value. */
    bool has_value() const noexcept { return value_.has_value(); }
    /** @brief The same. */
    explicit operator bool() const noexcept { return has_value(); }

    /** @brief The value; throws the error. */
    decltype(auto) value() & { return get(*this); }
    /** @brief The value; throws the error. */
    decltype(auto) value() const & { return get(*this); }
    /** @brief The value, moved; throws the error. */
    T value() && {
        require();
        if constexpr (!std::is_void_v<T>)
            return std::move(*value_);
    }
    /** @brief The value, or `other`. */
    template <class U> T value_or(U &&other) && {
        return has_value() ? std::move(*value_) : static_cast<T>(std::forward<U>(other));
    }
    /** @brief The value, which must be there. */
    auto &operator*() & noexcept { return *value_; }
    /** @brief The value, which must be there. */
    const auto &operator*() const & noexcept { return *value_; }
    /** @brief The value, which must be there. */
    auto &&operator*() && noexcept { return std::move(*value_); }
    /** @brief The value, which must be there. */
    auto *operator->() noexcept { return &*value_; }
    /** @brief The value, which must be there. */
    const auto *operator->() const noexcept { return &*value_; }

    /** @brief The error; an empty code where there is a value. */
    std::error_code error() const noexcept { return error_; }
    /** @brief The bytes that were moved, also before an error. */
    std::uint64_t transferred() const noexcept { return transferred_; }
    /** @brief Whether it was ended by its own timeout() or deadline(). */
    bool timed_out() const noexcept { return expired_; }
    /** @brief Whether it was ended by a cancel, a stop token, a close, or because something before it in a chain failed. */
    bool cancelled() const noexcept { return error_ == std::errc::operation_canceled; }

    /** @brief For those who make results: sets transferred(). */
    result &&moved(std::uint64_t bytes) && {
        transferred_ = bytes;
        return std::move(*this);
    }

private:
    template <class Self> static auto &get(Self &self)
        requires(!std::is_void_v<T>)
    {
        self.require();
        return *self.value_;
    }
    template <class Self> static void get(Self &self)
        requires(std::is_void_v<T>)
    {
        self.require();
    }
    void require() const {
        if (exception_)
            std::rethrow_exception(exception_);
        if (!has_value())
            throw std::system_error(error_);
    }

    std::optional<detail::stored<T>> value_;
    std::exception_ptr exception_;
    std::error_code error_;
    std::uint64_t transferred_ = 0;
    bool expired_ = false;
};

// ---- what arguments and results are made of ----

/** @brief Owns a file descriptor. Close it with loop.close(std::move(d)) to let the loop do it; else its destructor does. Since 0.1. */
class [[nodiscard]] descriptor {
public:
    /** @brief Owns none. */
    descriptor() = default;
    /** @brief Owns `fd`; negative: none. */
    explicit descriptor(int fd) noexcept : fd_(fd) {}
    descriptor(descriptor &&other) noexcept : fd_(other.release()) {}
    descriptor &operator=(descriptor &&other) noexcept {
        reset(other.release());
        return *this;
    }
    ~descriptor() { reset(); }

    /** @brief The descriptor, or -1. */
    int get() const noexcept { return fd_; }
    /** @brief The same, so that it can be an argument. Not of a temporary, which would close it. */
    operator int() const & noexcept { return fd_; }
    operator int() && = delete;
    /** @brief Whether there is one. */
    explicit operator bool() const noexcept { return fd_ >= 0; }
    /** @brief Gives it up. */
    int release() noexcept { return std::exchange(fd_, -1); }
    /** @brief Closes it, and owns `fd`. No operation may be in flight on it; loop.close() ends them. */
    void reset(int fd = -1) noexcept {
        if (int old = std::exchange(fd_, fd); old >= 0)
            ::close(old); // nobody to tell
    }

private:
    int fd_ = -1;
};

namespace detail {

template <class R>
concept contiguous_bytes = std::ranges::contiguous_range<R> && std::ranges::sized_range<R> &&
                           std::is_trivially_copyable_v<std::ranges::range_value_t<R>>;
template <class R>
concept writable_contiguous_bytes = contiguous_bytes<R> && std::ranges::borrowed_range<R> &&
                                    !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<R>>>;

template <class R> std::size_t byte_count(R &&range) noexcept {
    return std::ranges::size(range) * sizeof(std::ranges::range_value_t<R>);
}

} // namespace detail

/** @brief Memory to be written to: a span, an array, a vector or a string of anything trivially copyable. Since 0.1. */
struct bytes {
    void *data;        ///< where it begins
    std::size_t size;  ///< how many bytes

    /** @brief `count` bytes at `at`. */
    bytes(void *at, std::size_t count) noexcept : data(at), size(count) {}
    /** @brief The elements of `range`. */
    template <class R>
        requires detail::writable_contiguous_bytes<R &&>
    bytes(R &&range) noexcept : data(std::ranges::data(range)), size(detail::byte_count(range)) {}
};

/**
 * @brief Memory to be read: a span, an array, a vector, a string, a string_view or a lent buffer. Not a string literal, which
 * ends in a zero byte: write "text"sv. Since 0.1.
 */
struct const_bytes {
    const void *data;  ///< where it begins
    std::size_t size;  ///< how many bytes

    /** @brief `count` bytes at `at`. */
    const_bytes(const void *at, std::size_t count) noexcept : data(at), size(count) {}
    /** @brief The elements of `range`. */
    template <class R>
        requires detail::contiguous_bytes<R &&>
    const_bytes(R &&range) noexcept : data(std::ranges::data(range)), size(detail::byte_count(range)) {}
    template <std::size_t N> const_bytes(const char (&)[N]) = delete;
};

/** @brief A path or a name: a string literal, a std::string, a std::filesystem::path. Since 0.1. */
struct cstring {
    const char *text; ///< ends in a zero byte

    /** @brief `string`, which may be NULL where upcall.h allows it. */
    cstring(const char *string) noexcept : text(string) {}
    /** @brief What `string`.c_str() is. */
    template <class S>
        requires requires(const S &s) {
            { s.c_str() } -> std::convertible_to<const char *>;
        }
    cstring(const S &string) noexcept : text(string.c_str()) {}
};

/** @brief A socket's address: a sockaddr_in, _in6, _un or _storage, or one of getaddrinfo's. Since 0.1. */
struct address {
    const sockaddr *data; ///< the address
    socklen_t size;       ///< its bytes

    /** @brief `length` bytes at `at`. */
    address(const sockaddr *at, socklen_t length) noexcept : data(at), size(length) {}
    /** @brief One of getaddrinfo's. */
    address(const addrinfo &info) noexcept : data(info.ai_addr), size(info.ai_addrlen) {}
    /** @brief All of `a`. */
    template <class A>
        requires(requires(const A &a) { a.sin_family; } || requires(const A &a) { a.sin6_family; } ||
                 requires(const A &a) { a.sun_family; } || requires(const A &a) { a.ss_family; })
    address(const A &a) noexcept : data(reinterpret_cast<const sockaddr *>(&a)), size(sizeof a) {}
};

/** @brief Owns what getaddrinfo found: a range of addrinfo. Since 0.1. */
class [[nodiscard]] address_list {
public:
    /** @brief Walks the list. */
    class iterator {
    public:
        using value_type = addrinfo;
        using difference_type = std::ptrdiff_t;
        iterator() = default;
        explicit iterator(const addrinfo *at) noexcept : at_(at) {}
        const addrinfo &operator*() const noexcept { return *at_; }
        const addrinfo *operator->() const noexcept { return at_; }
        iterator &operator++() noexcept {
            at_ = at_->ai_next;
            return *this;
        }
        iterator operator++(int) noexcept {
            iterator before = *this;
            ++*this;
            return before;
        }
        bool operator==(const iterator &) const = default;

    private:
        const addrinfo *at_ = nullptr;
    };

    /** @brief Owns `list`. */
    explicit address_list(addrinfo *list = nullptr) noexcept : list_(list) {}
    /** @brief The first. */
    iterator begin() const noexcept { return iterator(list_.get()); }
    /** @brief The end. */
    iterator end() const noexcept { return iterator(); }
    /** @brief The list, or NULL. */
    const addrinfo *get() const noexcept { return list_.get(); }

private:
    struct free_it {
        void operator()(addrinfo *list) const noexcept { ::freeaddrinfo(list); }
    };
    std::unique_ptr<addrinfo, free_it> list_;
};

/** @brief Both ends of a pipe. Since 0.1. */
struct pipe_ends {
    descriptor read;  ///< reads what `write` writes
    descriptor write; ///< writes
};

/** @brief The entries in a buffer that readdir filled: a range of upcall_dirent. upcall_dirent_name() names them. Since 0.1. */
class dirents {
public:
    /** @brief Walks the records. */
    class iterator {
    public:
        using value_type = upcall_dirent;
        using difference_type = std::ptrdiff_t;
        iterator() = default;
        iterator(const void *records, std::size_t size) noexcept : records_(records), size_(size) { ++*this; }
        const upcall_dirent &operator*() const noexcept { return *at_; }
        const upcall_dirent *operator->() const noexcept { return at_; }
        iterator &operator++() noexcept {
            at_ = upcall_dirent_next(records_, static_cast<std::int64_t>(size_), at_);
            return *this;
        }
        iterator operator++(int) noexcept {
            iterator before = *this;
            ++*this;
            return before;
        }
        bool operator==(const iterator &other) const noexcept { return at_ == other.at_; }

    private:
        const void *records_ = nullptr;
        std::size_t size_ = 0;
        const upcall_dirent *at_ = nullptr;
    };

    /** @brief The entries in the first `size` bytes at `records`, which is what readdir answered. */
    dirents(const void *records, std::size_t size) noexcept : records_(records), size_(size) {}
    /** @brief The first. */
    iterator begin() const noexcept { return {records_, size_}; }
    /** @brief The end. */
    iterator end() const noexcept { return {}; }

private:
    const void *records_;
    std::size_t size_;
};

class loop;
class buffers;

/** @brief A buffer lent by a pool: a range of std::byte. Its destructor gives it back, on any thread. Since 0.1. */
class [[nodiscard]] lent_buffer {
public:
    /** @brief Holds none, as at the end of a stream. */
    lent_buffer() = default;
    /** @brief Takes the buffer of an event of an operation with `pool`. */
    lent_buffer(const buffers &pool, const upcall_event &event) noexcept;
    /** @brief For those who make them: `size` bytes in `data`, lent by `pool`. */
    lent_buffer(std::shared_ptr<upcall_buffers> pool, void *data, std::size_t size) noexcept
        : pool_(std::move(pool)), data_(data), size_(data ? size : 0) {}
    lent_buffer(lent_buffer &&other) noexcept
        : pool_(std::move(other.pool_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    lent_buffer &operator=(lent_buffer &&other) noexcept {
        lent_buffer old(std::move(*this));
        pool_ = std::move(other.pool_);
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        return *this;
    }
    ~lent_buffer() { give_back(); }

    /** @brief The bytes that were put in it. */
    std::byte *data() const noexcept { return static_cast<std::byte *>(data_); }
    /** @brief How many. */
    std::size_t size() const noexcept { return size_; }
    /** @brief Whether there are none. */
    bool empty() const noexcept { return size_ == 0; }
    /** @brief The bytes as a range. */
    std::byte *begin() const noexcept { return data(); }
    /** @brief The bytes as a range. */
    std::byte *end() const noexcept { return data() + size_; }
    /** @brief The bytes as text. */
    std::string_view text() const noexcept { return {static_cast<const char *>(data_), size_}; }
    /** @brief Whether a buffer is held. */
    explicit operator bool() const noexcept { return data_ != nullptr; }
    /** @brief The bytes as what readdir put there. */
    dirents entries() const noexcept { return {data_, size_}; }
    /** @brief Gives the buffer back now. */
    void give_back() noexcept {
        if (data_)
            upcall_buffers_return(pool_.get(), std::exchange(data_, nullptr));
        size_ = 0;
        pool_.reset();
    }

private:
    std::shared_ptr<upcall_buffers> pool_;
    void *data_ = nullptr;
    std::size_t size_ = 0;
};

/** @brief A message in a lent buffer, as recvmsg puts it there. Since 0.1. */
class [[nodiscard]] lent_message {
public:
    /** @brief Holds none. */
    lent_message() = default;
    /** @brief The message in `buffer`, of an operation with this room for name and control data. */
    lent_message(lent_buffer buffer, const msghdr &room) noexcept
        : buffer_(std::move(buffer)), name_room_(room.msg_namelen), control_room_(room.msg_controllen) {}

    /** @brief What the buffer begins with; NULL where there is no message: the end of a stream. */
    const upcall_msg *header() const noexcept { return reinterpret_cast<const upcall_msg *>(buffer_.data()); }
    /** @brief Whether there is a message. */
    explicit operator bool() const noexcept { return static_cast<bool>(buffer_); }
    /** @brief The sender's address. */
    std::span<const std::byte> name() const noexcept {
        return part(upcall_msg_name, header() ? std::min<std::size_t>(header()->namelen, name_room_) : 0);
    }
    /** @brief The control data. */
    std::span<const std::byte> control() const noexcept {
        return part(upcall_msg_control, header() ? header()->controllen : 0);
    }
    /** @brief The message. */
    std::span<const std::byte> payload() const noexcept { return part(upcall_msg_payload, buffer_.size()); }
    /** @brief The message as text. */
    std::string_view text() const noexcept {
        return {reinterpret_cast<const char *>(payload().data()), payload().size()};
    }

private:
    template <class Accessor> std::span<const std::byte> part(Accessor accessor, std::size_t size) const noexcept {
        msghdr room{};
        room.msg_namelen = name_room_;
        room.msg_controllen = control_room_;
        if (!header())
            return {};
        return {static_cast<const std::byte *>(accessor(header(), &room)), size};
    }

    lent_buffer buffer_;
    socklen_t name_room_ = 0;
    std::size_t control_room_ = 0;
};

// ---- the machinery: how something that waits is started, told, and destroyed ----

namespace detail {

/* Whoever waits: told by a call that answers which coroutine to resume next. */
struct receiver {
    std::coroutine_handle<> (*done)(void *) noexcept = nullptr;
    void *context = nullptr;

    std::coroutine_handle<> operator()() const noexcept { return done(context); }
};

inline std::coroutine_handle<> to_coroutine(void *address) noexcept {
    return std::coroutine_handle<>::from_address(address);
}

inline const std::stop_token no_token;

template <class Promise> const std::stop_token &token_of(const Promise &promise) noexcept {
    if constexpr (requires {
                      { promise.stop_token() } noexcept -> std::same_as<const std::stop_token &>;
                  })
        return promise.stop_token();
    else
        return no_token;
}

/*
 * Everything that can be awaited here has, besides these:
 *
 *     bool start(receiver, const std::stop_token &)   true: it has ended already, and nobody is told
 *     void cancel() noexcept                          asks it to end; any thread; before its receiver is told, or after
 *     static constexpr bool needs_token               cancel() does nothing; the token given to start() ends it
 *     bool failed() const noexcept                    it has ended, and finish() will throw
 *     value_type finish()                             takes the value, or throws
 *     result<value_type> finish_result(bool wanted)   takes either; not wanted: leaves a value where it is, if it can
 *
 * It may be moved until it is started. Destroyed in between it ends what it waits for.
 */
template <class Self> class awaitable {
public:
    Self &&operator co_await() && noexcept { return static_cast<Self &&>(*this); }
    bool await_ready() const noexcept { return false; }
    template <class Promise> bool await_suspend(std::coroutine_handle<Promise> waiting) {
        return !self().start({to_coroutine, waiting.address()}, token_of(waiting.promise()));
    }
    decltype(auto) await_resume() { return self().finish(); }

private:
    Self &self() noexcept { return static_cast<Self &>(*this); }
};

template <class A>
concept startable = requires(A &a, receiver r, const std::stop_token &token) {
    typename A::value_type;
    { a.start(r, token) } -> std::same_as<bool>;
    { a.finish_result(true) } -> std::same_as<result<typename A::value_type>>;
};

/* Something in at most one list. */
struct node {
    node *previous = nullptr;
    node *next = nullptr;
    void (*run)(node &) = nullptr;

    node() = default;
    explicit node(void (*f)(node &)) noexcept : run(f) {}
    node(const node &) = delete;
    node &operator=(const node &) = delete;
    ~node() { unlink(); }

    bool is_linked() const noexcept { return next != nullptr; }
    void unlink() noexcept {
        if (!is_linked())
            return;
        previous->next = next;
        next->previous = previous;
        previous = next = nullptr;
    }
};

class list {
public:
    list() noexcept { head_.previous = head_.next = &head_; }
    ~list() {
        while (!empty())
            head_.next->unlink();
    }
    bool empty() const noexcept { return head_.next == &head_; }
    void push_back(node &n) noexcept {
        n.previous = head_.previous;
        n.next = &head_;
        head_.previous->next = &n;
        head_.previous = &n;
    }
    node &back() noexcept { return *head_.previous; }
    node *pop_front() noexcept {
        if (empty())
            return nullptr;
        node *first = head_.next;
        first->unlink();
        return first;
    }
    /* `visit` may unlink the node it is given. */
    template <class Visit> void each(Visit visit) noexcept {
        for (node *at = head_.next, *after; at != &head_; at = after) {
            after = at->next;
            visit(*at);
        }
    }

private:
    node head_;
};

[[noreturn]] inline void cannot_wait(const char *why) {
    throw std::logic_error(std::string("upcall: something that waits for an operation was destroyed where its end cannot "
                                       "be waited for: ") +
                           why);
}

/*
 * The loop as its operations see it. A callback of the C library never resumes anybody: it puts who has ended into `ready`,
 * and the loop resumes them after the turn, outside all C frames.
 */
struct core {
    upcall_loop *native = nullptr;
    list ready;
    list waiting; // those who wait for the next event of a multishot: see waiter
    std::size_t keeping = 0; // operations of this header in flight, without UPCALL_BACKGROUND
    bool active = false;     // run() or poll() is under way, so that `ready` is looked at
    bool in_turn = false;
    bool in_native_run = false;
    bool called_back = false; // upcall_stop() was called to get out of upcall_run()
    bool woken = false;       // a post is under way, only so that there is a turn
    std::atomic<bool> stopped{false};
    std::vector<std::exception_ptr> errors;

    core() = default;
    core(const core &) = delete;
    core &operator=(const core &) = delete;

    void push(node &n) noexcept {
        ready.push_back(n);
        attend();
    }

    /* Something outside a turn is to be done: who turns the loop must get to it. */
    void attend() noexcept {
        if (in_native_run && !called_back) {
            called_back = true;
            upcall_stop(native);
        } else if (!active && !woken) {
            woken = upcall_post(native, woke, this) == 0;
        }
    }

    void capture(std::exception_ptr exception) noexcept {
        errors.push_back(std::move(exception));
        attend();
    }

    void count_in(std::uint32_t op_flags) noexcept { keeping += (op_flags & UPCALL_BACKGROUND) == 0; }
    void count_out(std::uint32_t op_flags) noexcept { keeping -= (op_flags & UPCALL_BACKGROUND) == 0; }

    int turn(std::int64_t timeout_ns) noexcept {
        in_turn = true;
        const int delivered = upcall_poll(native, timeout_ns);
        in_turn = false;
        return delivered;
    }

    /* upcall_run(), but back as soon as there is something to do here. */
    static constexpr int idle = 0, stop = 1, called = 2;
    int native_run() noexcept {
        in_turn = in_native_run = true;
        const int answer = upcall_run(native);
        in_turn = in_native_run = false;
        return std::exchange(called_back, false) && answer == 1 ? called : answer;
    }

    /* Turns the loop until `ended`, resuming nobody. */
    template <class Ended> void wait(Ended ended) {
        while (!ended()) {
            if (in_turn)
                cannot_wait("inside a callback of the same loop");
            const int delivered = turn(-1);
            if (delivered == -ECHILD) // a forked child: nothing is in flight here
                return;
            if (delivered < 0)
                cannot_wait(upcall_strerror(delivered));
        }
    }

    void rethrow() {
        if (errors.empty())
            return;
        std::exception_ptr first = std::move(errors.front());
        errors.erase(errors.begin());
        std::rethrow_exception(first);
    }

    void resume_ready() {
        rethrow();
        while (node *n = ready.pop_front()) {
            n->run(*n);
            rethrow();
        }
    }

    static void woke(upcall_loop *, void *self) noexcept { static_cast<core *>(self)->woken = false; }
};

inline std::uint64_t to_nanoseconds(std::chrono::duration<long double, std::nano> time) noexcept {
    if (!(time.count() > 0))
        return 0;
    constexpr auto most = std::numeric_limits<std::int64_t>::max(); // of steady_clock, and 292 years
    return time.count() >= static_cast<long double>(most) ? static_cast<std::uint64_t>(most)
                                                           : static_cast<std::uint64_t>(time.count());
}

/* Ends something that has cancel(). */
template <class Target> struct canceller {
    Target *target;
    void operator()() const noexcept { target->cancel(); }
};
template <class Target> using stop_callback = std::stop_callback<canceller<Target>>;

/* The part of an operation that does not depend on its result. */
class operation_base : node {
public:
    static constexpr bool needs_token = false;

    operation_base(core &loop, const upcall_op &op) noexcept : node(on_ready), core_(&loop), op_(op) {}
    operation_base(operation_base &&other) noexcept
        : node(on_ready), core_(other.core_), op_(other.op_), is_shielded_(other.is_shielded_) {}

    /* Also after the end, when there may be no loop any more. */
    void cancel() noexcept {
        const upcall_id id = id_.load(std::memory_order_relaxed);
        if (id != 0 && !is_shielded_)
            upcall_cancel(core_->native, id);
    }

    /* For a submit of several: what to submit, and what came of it. */
    const upcall_op &prepare(receiver told) noexcept {
        receiver_ = told;
        op_.callback = on_event;
        op_.user = this;
        return op_;
    }
    void accepted(upcall_id id) noexcept {
        id_.store(id, std::memory_order_relaxed);
        state_ = state::in_flight;
        core_->count_in(op_.flags);
    }
    void refused(int error) noexcept {
        outcome_.result = error;
        state_ = state::refused;
    }
    core &loop_core() const noexcept { return *core_; }

protected:
    enum class state : std::uint8_t { idle, in_flight, ended, refused, taken };

    bool begin(receiver told, const std::stop_token &token) noexcept {
        const bool stoppable = !is_shielded_ && token.stop_possible();
        if (stoppable && token.stop_requested())
            return true; // the outcome is -ECANCELED from the beginning
        upcall_id id = 0;
        prepare(told);
        if (const int error = upcall_submit(core_->native, &op_, 1, &id); error < 0) {
            refused(error);
            return true;
        }
        accepted(id);
        if (stoppable)
            on_stop_.emplace(token, canceller<operation_base>{this});
        return false;
    }

    bool has_failed() const noexcept { return outcome_.result < 0; }

    [[noreturn]] void fail() const {
        // The text is this thread's last, so it is ours only for who submitted this one alone.
        const bool has_text = state_ == state::refused && receiver_.done == to_coroutine;
        throw std::system_error(make_error(outcome_.result), has_text ? upcall_last_error() : upcall_op_name(op_.kind));
    }

    /* After this nothing refers to it. */
    void settle() noexcept {
        if (state_ != state::in_flight)
            return;
        if (op_.kind != UPCALL_OP_CLOSE) // which would leave the descriptor open
            upcall_cancel(core_->native, id_.load(std::memory_order_relaxed));
        core_->wait([this] { return state_ != state::in_flight; });
    }

    /* Whether there is a value that nobody has taken. */
    bool is_untaken() const noexcept { return state_ == state::ended && outcome_.result >= 0; }

    core *core_;
    upcall_op op_;
    outcome outcome_;
    receiver receiver_;
    state state_ = state::idle;
    bool is_shielded_ = false;

private:
    static void on_event(upcall_loop *, const upcall_event *event) noexcept {
        auto &self = *static_cast<operation_base *>(event->user);
        if ((event->flags & UPCALL_MORE) != 0)
            return; // zero-copy: the final event repeats it
        self.outcome_ = outcome(*event);
        self.state_ = state::ended;
        self.core_->count_out(self.op_.flags);
        self.on_stop_.reset(); // the loop may be gone before it is resumed
        self.id_.store(0, std::memory_order_relaxed);
        self.core_->push(self);
    }
    static void on_ready(node &n) { static_cast<operation_base &>(n).receiver_().resume(); }

    std::atomic<upcall_id> id_{0}; // 0: not in flight
    std::optional<stop_callback<operation_base>> on_stop_;
};

inline void take_options(upcall_op &to, const upcall_op &from) noexcept {
    to.flags |= from.flags;
    to.timeout_ns = from.timeout_ns;
    to.buffers = from.buffers;
    to.lend_max = from.lend_max;
}

/*
 * A codec says what the value of an operation is. It has value_type and decode(outcome); make(), if the operation keeps
 * something inside the codec, whose address is known only at the start; each, the codec of its multishot's events;
 * combine(), if events that nobody has taken yet are one. An owner's is taken also when nobody wants it.
 */
template <class T> struct number {
    using value_type = T;
    T decode(const outcome &o) noexcept {
        if constexpr (!std::is_void_v<T>)
            return static_cast<T>(o.result);
    }
};
struct woken : number<bool> { // futex_wait
    bool decode(const outcome &o) noexcept { return o.result == 0; }
};
struct ticks : number<std::uint64_t> {
    static void combine(outcome &last, const outcome &o) noexcept { last.result += o.result; }
};
struct ticking : number<void> {
    using each = ticks;
};
struct readiness : number<std::uint32_t> {
    using each = readiness;
    static void combine(outcome &last, const outcome &o) noexcept { last.result |= o.result; }
};
struct signals : number<int> {
    using each = signals;
    static void combine(outcome &, const outcome &) noexcept {}
};
struct opened {
    using value_type = descriptor;
    static constexpr bool owns = true;
    descriptor decode(const outcome &o) noexcept { return descriptor(static_cast<int>(o.result)); }
};
struct accepted : opened {
    using each = accepted;
};
struct closed : number<void> {
    int fd;
    descriptor owned; // closed here if the operation did not get to it
    upcall_op make() noexcept { return upcall_op_close(fd); }
    void ended(const outcome &o) noexcept {
        if (o.result != -ECANCELED)
            owned.release();
    }
};
struct piped {
    using value_type = pipe_ends;
    static constexpr bool owns = true;
    int flags;
    std::array<int, 2> fds{-1, -1};
    upcall_op make() noexcept { return upcall_op_pipe(fds.data(), flags); }
    pipe_ends decode(const outcome &) noexcept { return {descriptor(fds[0]), descriptor(fds[1])}; }
};
struct resolved {
    using value_type = address_list;
    static constexpr bool owns = true;
    const char *node, *service;
    const addrinfo *hints;
    addrinfo *found = nullptr;
    upcall_op make() noexcept { return upcall_op_getaddrinfo(node, service, hints, &found); }
    address_list decode(const outcome &) noexcept { return address_list(found); }
};
struct status {
    using value_type = struct statx;
    int dirfd;
    const char *path;
    int flags;
    unsigned mask;
    struct statx found {};
    upcall_op make() noexcept { return upcall_op_statx(dirfd, path, flags, mask, &found); }
    struct statx decode(const outcome &) noexcept { return found; }
};
struct waited {
    using value_type = siginfo_t;
    idtype_t idtype;
    id_t id;
    int options;
    siginfo_t info{};
    upcall_op make() noexcept { return upcall_op_waitid(static_cast<std::uint32_t>(idtype), id, &info, options); }
    siginfo_t decode(const outcome &) noexcept { return info; }
};
template <class T> struct option {
    using value_type = T;
    int fd, level, name;
    T value{};
    socklen_t size = sizeof value;
    upcall_op make() noexcept { return upcall_op_getsockopt(fd, level, name, &value, &size); }
    T decode(const outcome &) noexcept { return value; }
};
template <class T> struct set_option : number<void> {
    int fd, level, name;
    T value;
    set_option(int on, int at, int which, const T &to) : fd(on), level(at), name(which), value(to) {}
    upcall_op make() noexcept { return upcall_op_setsockopt(fd, level, name, &value, sizeof value); }
};
struct lent {
    using value_type = lent_buffer;
    using each = lent;
    static constexpr bool owns = true;
    std::shared_ptr<upcall_buffers> pool;
    lent_buffer decode(const outcome &o) noexcept { return {pool, o.buffer, o.transferred}; }
};
struct lent_messages {
    using value_type = lent_message;
    using each = lent_messages;
    static constexpr bool owns = true;
    std::shared_ptr<upcall_buffers> pool;
    int fd;
    int flags;
    msghdr room{};
    upcall_op make() noexcept { return upcall_op_recvmsg(fd, &room, flags); }
    lent_message decode(const outcome &o) noexcept { return {{pool, o.buffer, o.transferred}, room}; }
};
template <class F> struct computed {
    using value_type = std::remove_cvref_t<std::invoke_result_t<F &>>;
    F function;
    std::optional<stored<value_type>> value;
    std::exception_ptr thrown;
    std::atomic<int> step{0}; // hands `function` over, and the value back, where a race detector can see it

    explicit computed(F f) : function(std::move(f)) {}
    computed(computed &&other) : function(std::move(other.function)) {}
    upcall_op make() noexcept {
        step.store(1, std::memory_order_release);
        return upcall_op_work(run, this);
    }
    static std::int64_t run(void *arg) noexcept {
        auto &self = *static_cast<computed *>(arg);
        (void)self.step.load(std::memory_order_acquire);
        try {
            if constexpr (std::is_void_v<value_type>) {
                self.function();
                self.value.emplace();
            } else {
                self.value.emplace(self.function());
            }
        } catch (...) {
            self.thrown = std::current_exception();
        }
        self.step.store(2, std::memory_order_release);
        return 0;
    }
    std::exception_ptr exception() const noexcept {
        (void)step.load(std::memory_order_acquire);
        return thrown;
    }
    value_type decode(const outcome &) {
        if constexpr (!std::is_void_v<value_type>)
            return std::move(*value);
    }
};

template <class Codec>
concept made_late = requires(Codec &codec) {
    { codec.make() } -> std::same_as<upcall_op>;
};
template <class Codec>
concept owner = requires { requires Codec::owns; };

} // namespace detail

template <class Each> class multishot;

/** @brief What upcall::as_result() and .result() make: awaits `A`, and gives an upcall::result. Since 0.1. */
template <class A> class [[nodiscard]] with_result : public detail::awaitable<with_result<A>> {
public:
    using value_type = result<typename A::value_type>;
    static constexpr bool needs_token = A::needs_token;

    explicit with_result(A inner) : inner_(std::move(inner)) {}
    bool start(detail::receiver told, const std::stop_token &token) { return inner_.start(told, token); }
    void cancel() noexcept { inner_.cancel(); }
    bool failed() const noexcept { return false; }
    value_type finish() { return inner_.finish_result(true); }
    result<value_type> finish_result(bool wanted) {
        return result<value_type>(std::in_place, inner_.finish_result(wanted));
    }

private:
    A inner_;
};

/** @brief `co_await as_result(a)` gives a result instead of throwing: of an operation, a task, a group … Since 0.1. */
template <class A>
    requires detail::startable<A>
with_result<A> as_result(A awaitable) {
    return with_result<A>(std::move(awaitable));
}

/**
 * @brief An operation of a loop: made by a member of upcall::loop, started by co_await, once. Options are set before.
 *
 * Destroyed while it is in flight it is cancelled and waited for. Since 0.1.
 */
template <class Codec>
class [[nodiscard]] operation : public detail::operation_base, public detail::awaitable<operation<Codec>> {
    using base = detail::operation_base;

public:
    using value_type = typename Codec::value_type;

    /** @brief Made by upcall::loop. */
    operation(detail::core &loop, const upcall_op &op, Codec codec = {}) : base(loop, op), codec_(std::move(codec)) {}
    operation(operation &&) = default;
    ~operation() {
        settle();
        if constexpr (requires { codec_.ended(outcome_); })
            if (state_ == state::ended || state_ == state::taken)
                codec_.ended(outcome_);
        if constexpr (detail::owner<Codec>)
            if (is_untaken())
                (void)codec_.decode(outcome_);
    }

    /** @brief Ends it after this time, ETIMEDOUT; at least a nanosecond. With multishot() an idle limit. */
    operation &&timeout(std::chrono::duration<long double, std::nano> time) && {
        op_.timeout_ns = std::max<std::uint64_t>(detail::to_nanoseconds(time), 1);
        return std::move(*this);
    }
    /** @brief Ends it at this time, ETIMEDOUT. */
    operation &&deadline(std::chrono::steady_clock::time_point time) && {
        return std::move(*this).timeout(time - std::chrono::steady_clock::now());
    }
    /** @brief Sets UPCALL_ bits that have no member of their own here. */
    operation &&flags(std::uint32_t bits) && {
        op_.flags |= bits;
        return std::move(*this);
    }
    /** @brief UPCALL_FULL: all bytes, not some. */
    operation &&full() && { return std::move(*this).flags(UPCALL_FULL); }
    /** @brief UPCALL_ZEROCOPY: the data is not copied; ends when it is no longer needed. */
    operation &&zerocopy() && { return std::move(*this).flags(UPCALL_ZEROCOPY); }
    /** @brief UPCALL_BACKGROUND: does not keep loop.run() alive. */
    operation &&background() && { return std::move(*this).flags(UPCALL_BACKGROUND); }
    /** @brief UPCALL_LINK, in a batch(): the next one starts only when this succeeded in full. */
    operation &&link() && { return std::move(*this).flags(UPCALL_LINK); }
    /** @brief UPCALL_LINK_ALWAYS, in a batch(): the next one starts when this has ended. */
    operation &&link_always() && { return std::move(*this).flags(UPCALL_LINK_ALWAYS); }
    /** @brief UPCALL_DRAIN, in a batch(): starts when everything before it has ended. */
    operation &&drain() && { return std::move(*this).flags(UPCALL_DRAIN); }
    /** @brief Of those with a pool: pauses while so many buffers are lent. */
    operation &&lend_max(std::uint32_t buffers) && {
        op_.lend_max = buffers;
        return std::move(*this);
    }
    /** @brief Neither a stop token nor a lost race ends it: for what must be done also when a task is told to stop. */
    operation &&unstoppable() && {
        is_shielded_ = true;
        return std::move(*this);
    }

    /** @brief `co_await op.result()` gives an upcall::result instead of throwing. */
    with_result<operation> result() && { return as_result(std::move(*this)); }

    /** @brief UPCALL_MULTISHOT: begins at once, and gives many values; accept, recv, recvmsg, readdir, poll, sleep, signal. */
    auto multishot() &&
        requires requires { typename Codec::each; }
    {
        using each = typename Codec::each;
        if constexpr (std::same_as<each, Codec>)
            return upcall::multishot<each>(*core_, op_, std::move(codec_));
        else
            return upcall::multishot<each>(*core_, op_, each{});
    }

    /** @brief What it submits, for a completion. Not of those that keep something in themselves. */
    const upcall_op &native() const noexcept
        requires(!detail::made_late<Codec>)
    {
        return op_;
    }

    // What detail::awaitable asks for.
    void make() noexcept {
        if constexpr (detail::made_late<Codec>) {
            upcall_op made = codec_.make();
            detail::take_options(made, op_);
            op_ = made;
        }
    }
    bool start(detail::receiver told, const std::stop_token &token) noexcept {
        make();
        return begin(told, token);
    }
    bool was_cancelled() const noexcept { return outcome_.result == -ECANCELED; }
    bool failed() const noexcept {
        if constexpr (requires { codec_.exception(); })
            if (codec_.exception())
                return true;
        return has_failed();
    }
    value_type finish() {
        if constexpr (requires { codec_.exception(); })
            if (std::exception_ptr thrown = codec_.exception())
                std::rethrow_exception(thrown);
        if (has_failed())
            fail();
        state_ = state::taken;
        return codec_.decode(outcome_);
    }
    upcall::result<value_type> finish_result(bool) {
        using answer = upcall::result<value_type>;
        if constexpr (requires { codec_.exception(); })
            if (std::exception_ptr thrown = codec_.exception())
                return answer(std::move(thrown));
        if (has_failed())
            return answer(outcome_);
        state_ = state::taken;
        if constexpr (std::is_void_v<value_type>)
            return answer(std::in_place).moved(outcome_.transferred);
        else
            return answer(std::in_place, codec_.decode(outcome_)).moved(outcome_.transferred);
    }

private:
    Codec codec_;
};

// ---- multishots ----

namespace detail {

/* Who waits for the next event of a multishot, or for its end. Linked in core::waiting until it is woken. */
struct waiter : node {
    core *loop = nullptr;
    std::atomic<upcall_loop *> native{nullptr}; // while it waits
    waiter **place = nullptr; // where the multishot remembers it
    receiver told;
    bool wants_end = false;
    bool is_cut = false; // woken by a cancel: what comes after that stays where it is
    std::thread::id thread;
    std::atomic<bool> cancelled{false};
    std::optional<stop_callback<waiter>> on_stop;

    waiter() noexcept : node(on_ready) {}
    ~waiter() {
        if (is_waiting())
            *place = nullptr;
    }

    bool is_waiting() const noexcept { return place && *place == this; }
    void wait(core &in, waiter *&at, receiver who, const std::stop_token &token) {
        loop = &in;
        native.store(in.native, std::memory_order_relaxed);
        place = &at;
        told = who;
        thread = std::this_thread::get_id();
        at = this;
        in.waiting.push_back(*this);
        if (token.stop_possible())
            on_stop.emplace(token, canceller<waiter>{this});
    }
    void wake() noexcept {
        *place = nullptr;
        unlink();
        on_stop.reset();
        native.store(nullptr, std::memory_order_relaxed);
        loop->push(*this);
    }
    void cut() noexcept {
        is_cut = true;
        wake();
    }
    /* Any thread: the lists are the loop's. */
    void cancel() noexcept {
        cancelled.store(true);
        if (thread == std::this_thread::get_id()) {
            if (is_waiting())
                cut();
        } else if (upcall_loop *to = native.load(std::memory_order_relaxed)) {
            upcall_post(to, wake_cancelled, loop); // refused by a loop that closes, and ends everything
        }
    }
    static void wake_cancelled(upcall_loop *, void *loop) noexcept {
        static_cast<core *>(loop)->waiting.each([](node &n) {
            if (auto &self = static_cast<waiter &>(n); self.cancelled.load())
                self.cut();
        });
    }
    static void on_ready(node &n) { static_cast<waiter &>(n).told().resume(); }
};

} // namespace detail

/** @brief Awaits the next value of a multishot: no value at its end. Since 0.1. */
template <class Each> class [[nodiscard]] next_value : public detail::awaitable<next_value<Each>> {
public:
    using value_type = std::optional<typename Each::value_type>;
    static constexpr bool needs_token = false;

    explicit next_value(multishot<Each> &from) noexcept : from_(&from) {}
    next_value(next_value &&other) noexcept : from_(other.from_) {}
    /** @brief `co_await m.next().result()` gives an upcall::result instead of throwing. */
    with_result<next_value> result() && { return as_result(std::move(*this)); }

    bool start(detail::receiver told, const std::stop_token &token) {
        waiter_.is_cut = token.stop_requested();
        if (waiter_.is_cut || from_->is_ready())
            return true;
        waiter_.wait(*from_->core_, from_->waiter_, told, token);
        return false;
    }
    void cancel() noexcept { waiter_.cancel(); }
    bool failed() const noexcept { return waiter_.is_cut || from_->next_fails(); }
    value_type finish() {
        if (waiter_.is_cut)
            throw std::system_error(make_error(-ECANCELED), upcall_op_name(from_->op_.kind));
        return from_->take();
    }
    upcall::result<value_type> finish_result(bool wanted) {
        using answer = upcall::result<value_type>;
        if (!wanted || failed())
            return answer(wanted && !waiter_.is_cut ? from_->take_failure() : detail::outcome());
        return answer(std::in_place, from_->take());
    }

private:
    multishot<Each> *from_;
    detail::waiter waiter_;
};

/** @brief Awaits the end of a multishot that was told to end. Since 0.1. */
template <class Each> class [[nodiscard]] multishot_end : public detail::awaitable<multishot_end<Each>> {
public:
    using value_type = void;
    static constexpr bool needs_token = false;

    explicit multishot_end(multishot<Each> &of) noexcept : of_(&of) {}
    multishot_end(multishot_end &&other) noexcept : of_(other.of_) {}
    bool start(detail::receiver told, const std::stop_token &) {
        if (of_->ended_)
            return true;
        of_->ask_to_end();
        waiter_.wants_end = true;
        waiter_.wait(*of_->core_, of_->waiter_, told, detail::no_token);
        return false;
    }
    void cancel() noexcept {}
    bool failed() const noexcept { return false; }
    void finish() noexcept {}
    result<void> finish_result(bool) { return result<void>(std::in_place); }

private:
    multishot<Each> *of_;
    detail::waiter waiter_;
};

/**
 * @brief An asynchronous generator over an operation with UPCALL_MULTISHOT:
 * `while (auto value = co_await m.next())`. Made by operation::multishot(), which submits it.
 *
 * Values that come while nobody awaits them are kept, in order; those of poll, sleep and signal become one (all readiness
 * seen, the sum of the periods, one signal). recv, recvmsg and readdir keep at most operation::lend_max() buffers, which is
 * 16 if it is not set; connections are limited by the process's descriptors.
 *
 * It stays where it was made. One coroutine at a time awaits it. Destroyed, it is cancelled, waited for, and what nobody took is
 * closed or given back. Since 0.1.
 */
template <class Each> class [[nodiscard]] multishot {
public:
    using value_type = typename Each::value_type;

    /** @brief Made by operation::multishot(). Throws what upcall_submit() refuses. */
    multishot(detail::core &loop, const upcall_op &op, Each codec) : core_(&loop), codec_(std::move(codec)), op_(op) {
        if constexpr (detail::made_late<Each>) {
            upcall_op made = codec_.make();
            detail::take_options(made, op_);
            op_ = made;
        }
        if (op_.buffers && op_.lend_max == 0)
            op_.lend_max = 16;
        kept_.reserve(op_.buffers ? op_.lend_max + 1 : 4);
        op_.flags |= UPCALL_MULTISHOT;
        op_.callback = on_event;
        op_.user = this;
        if (const int error = upcall_submit(core_->native, &op_, 1, &id_); error < 0)
            throw std::system_error(make_error(error), upcall_last_error());
        core_->count_in(op_.flags);
    }
    multishot(const multishot &) = delete;
    multishot &operator=(const multishot &) = delete;
    ~multishot() { settle(); }

    /**
     * @brief `co_await m.next()`: a std::optional with the next value, empty at the end. An error of one event (an accept
     * without descriptors) is thrown, and the next call goes on; after the final error come empty ones.
     *
     * A stop token, or another one that wins a race, ends the waiting, not the multishot; no value is lost.
     */
    next_value<Each> next() noexcept { return next_value<Each>(*this); }
    /** @brief `co_await m.close()`: cancels it, and waits for its final event. What is kept can still be taken. */
    multishot_end<Each> close() noexcept { return multishot_end<Each>(*this); }

private:
    friend next_value<Each>;
    friend multishot_end<Each>;

    bool is_ready() const noexcept { return first_ < kept_.size() || ended_; }
    bool next_fails() const noexcept {
        return first_ < kept_.size() ? kept_[first_].result < 0 : !ended_; // !ended_: it was never started
    }
    detail::outcome pop() noexcept {
        const detail::outcome o = kept_[first_++];
        if (first_ == kept_.size() || (first_ >= 64 && first_ * 2 >= kept_.size())) {
            kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(first_));
            first_ = 0;
        }
        return o;
    }
    detail::outcome take_failure() noexcept { return first_ < kept_.size() ? pop() : detail::outcome(); }
    std::optional<value_type> take() {
        if (next_fails())
            throw std::system_error(make_error(take_failure().result), upcall_op_name(op_.kind));
        if (first_ == kept_.size())
            return std::nullopt;
        return codec_.decode(pop());
    }

    void ask_to_end() noexcept {
        asked_ = true;
        upcall_cancel(core_->native, id_);
    }
    void settle() noexcept {
        if (!ended_) {
            ask_to_end();
            core_->wait([this] { return ended_; });
        }
        if constexpr (detail::owner<Each>)
            for (; first_ < kept_.size(); ++first_)
                if (kept_[first_].result >= 0)
                    (void)codec_.decode(kept_[first_]);
    }

    void keep(const detail::outcome &o) {
        if constexpr (requires { Each::combine(kept_.back(), o); })
            if (first_ < kept_.size() && kept_.back().result >= 0 && o.result >= 0)
                return Each::combine(kept_.back(), o);
        try {
            kept_.push_back(o);
        } catch (...) {
            if constexpr (detail::owner<Each>)
                if (o.result >= 0)
                    (void)codec_.decode(o);
            core_->capture(std::current_exception());
        }
    }
    static void on_event(upcall_loop *, const upcall_event *event) noexcept {
        auto &self = *static_cast<multishot *>(event->user);
        const bool is_final = (event->flags & UPCALL_MORE) == 0;
        const bool is_end = event->result == 0 || (event->result == -ECANCELED && self.asked_);
        if (!is_final || !is_end || event->buffer)
            self.keep(detail::outcome(*event));
        if (is_final) {
            self.ended_ = true;
            self.core_->count_out(self.op_.flags);
        }
        if (self.waiter_ && (is_final || !self.waiter_->wants_end))
            self.waiter_->wake();
    }

    detail::core *core_;
    Each codec_;
    upcall_op op_;
    upcall_id id_ = 0;
    std::vector<detail::outcome> kept_; // from first_ on
    std::size_t first_ = 0;
    detail::waiter *waiter_ = nullptr;
    bool asked_ = false;
    bool ended_ = false;
};

// ---- tasks ----

template <class T> class task;

namespace detail {

class task_promise_base {
public:
    std::suspend_always initial_suspend() const noexcept { return {}; }
    auto final_suspend() const noexcept {
        struct tell {
            bool await_ready() const noexcept { return false; }
            std::coroutine_handle<> await_suspend(std::coroutine_handle<>) const noexcept {
                return told.done ? told() : std::noop_coroutine();
            }
            void await_resume() const noexcept {}
            receiver told;
        };
        return tell{told_};
    }
    void unhandled_exception() noexcept { exception_ = std::current_exception(); }
    const std::stop_token &stop_token() const noexcept { return *token_; }

    receiver told_; // nobody while start() is under way
    const std::stop_token *token_ = &no_token; // of who awaits it, and so lives longer
    std::exception_ptr exception_;
};

template <class T> class task_promise : public task_promise_base {
public:
    task<T> get_return_object() noexcept;
    template <class U>
        requires std::constructible_from<T, U>
    void return_value(U &&value) {
        value_.emplace(std::forward<U>(value));
    }
    T take() { return std::move(*value_); }

private:
    std::optional<T> value_;
};

template <> class task_promise<void> : public task_promise_base {
public:
    task<void> get_return_object() noexcept;
    void return_void() const noexcept {}
    void take() const noexcept {}
};

} // namespace detail

/**
 * @brief A coroutine that computes a T: starts when it is awaited, or by loop.spawn(), loop.run() or scope::spawn().
 *
 * It owns its frame, and may be moved until it is started. Destroyed while it waits, it ends what it waits for first. Since 0.1.
 */
template <class T = void> class [[nodiscard]] task : public detail::awaitable<task<T>> {
    static_assert(!std::is_reference_v<T>, "a task gives a value: use a pointer");

public:
    using value_type = T;
    using promise_type = detail::task_promise<T>;
    static constexpr bool needs_token = true;

    task(task &&other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
    task &operator=(task &&other) noexcept {
        std::swap(frame_, other.frame_);
        return *this;
    }
    ~task() {
        if (frame_)
            frame_.destroy();
    }
    /** @brief `co_await t.result()` gives an upcall::result instead of throwing. */
    with_result<task> result() && { return as_result(std::move(*this)); }

    bool start(detail::receiver told, const std::stop_token &token) {
        promise().token_ = &token;
        frame_.resume();
        if (frame_.done())
            return true;
        promise().told_ = told;
        return false;
    }
    void cancel() noexcept {}
    bool failed() const noexcept { return !frame_.done() || promise().exception_; }
    T finish() {
        if (promise().exception_)
            std::rethrow_exception(promise().exception_);
        return promise().take();
    }
    upcall::result<T> finish_result(bool) {
        using answer = upcall::result<T>;
        if (!frame_.done()) // never started
            return answer(detail::outcome());
        if (promise().exception_)
            return answer(promise().exception_);
        if constexpr (std::is_void_v<T>)
            return answer(std::in_place);
        else
            return answer(std::in_place, promise().take());
    }

private:
    friend promise_type;
    explicit task(std::coroutine_handle<promise_type> frame) noexcept : frame_(frame) {}
    promise_type &promise() const noexcept { return frame_.promise(); }
    std::coroutine_handle<promise_type> frame_;
};

namespace detail {

template <class T> task<T> task_promise<T>::get_return_object() noexcept {
    return task<T>(std::coroutine_handle<task_promise>::from_promise(*this));
}
inline task<void> task_promise<void>::get_return_object() noexcept {
    return task<void>(std::coroutine_handle<task_promise>::from_promise(*this));
}

struct ask_token {
    const std::stop_token *token = &no_token;
    bool await_ready() const noexcept { return false; }
    template <class Promise> bool await_suspend(std::coroutine_handle<Promise> waiting) noexcept {
        token = &token_of(waiting.promise());
        return false;
    }
    std::stop_token await_resume() const noexcept { return *token; }
};

} // namespace detail

/** @brief `co_await current_stop_token()`: the token that ends the task that asks. Since 0.1. */
inline detail::ask_token current_stop_token() noexcept { return {}; }

// ---- groups ----

namespace detail {

/*
 * What waits for several others. Derived has start_children(), cancel_children(), and `children_`, which it must not touch
 * before reset_stop().
 */
template <class Derived, bool FirstDecides, bool NeedsToken> class group_base : public awaitable<Derived> {
public:
    static constexpr bool needs_token = false;

    group_base() = default;
    group_base(group_base &&) noexcept {} // before the start

    bool start(receiver told, const std::stop_token &token) {
        told_ = told;
        if constexpr (NeedsToken) {
            source_ = std::stop_source();
            token_ = source_.get_token();
        }
        self().start_children();
        if (left_ == 0)
            return true;
        if (token.stop_possible())
            on_stop_.emplace(token, canceller<Derived>{&self()});
        return false;
    }
    void cancel() noexcept {
        self().cancel_children();
        if constexpr (NeedsToken)
            source_.request_stop();
    }
    with_result<Derived> result() && { return as_result(std::move(self())); }

protected:
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    template <class Child> void start_child(Child &child, std::size_t index, receiver told) {
        if (decided_ != none)
            return;
        if (child.start(told, token_))
            ended(index, child.failed());
        else
            ++left_;
    }
    void ended(std::size_t index, bool failed) noexcept {
        if (decided_ == none && (FirstDecides || failed)) {
            decided_ = index;
            cancel();
        }
    }
    std::coroutine_handle<> told(std::size_t index, bool failed) noexcept {
        ended(index, failed);
        if (--left_ > 0)
            return std::noop_coroutine();
        on_stop_.reset();
        return told_();
    }
    void reset_stop() noexcept {
        on_stop_.reset();
        if (left_ > 0)
            cancel();
    }

    std::size_t left_ = 0;
    std::size_t decided_ = none; // the first that ended, or that failed

private:
    Derived &self() noexcept { return static_cast<Derived &>(*this); }

    receiver told_;
    std::stop_source source_{std::nostopstate};
    std::stop_token token_;
    std::optional<stop_callback<Derived>> on_stop_;
};

template <class Derived, bool FirstDecides, class... Children>
class tuple_group : public group_base<Derived, FirstDecides, (Children::needs_token || ...)> {
    using base = group_base<Derived, FirstDecides, (Children::needs_token || ...)>;

public:
    explicit tuple_group(Children... children) : children_(std::move(children)...) {}
    tuple_group(tuple_group &&) = default;
    ~tuple_group() { this->reset_stop(); }

    void start_children() {
        each([this]<std::size_t I>(auto &child, std::integral_constant<std::size_t, I>) {
            this->start_child(child, I, {child_told<I>, this});
        });
    }
    void cancel_children() noexcept {
        each([](auto &child, auto) { child.cancel(); });
    }

protected:
    template <class Visit> void each(Visit visit) {
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (visit(std::get<I>(children_), std::integral_constant<std::size_t, I>()), ...);
        }(std::index_sequence_for<Children...>());
    }
    /* visit(child, index) of the one that decided. */
    template <class Visit> void decider(Visit visit) {
        each([&]<std::size_t I>(auto &child, std::integral_constant<std::size_t, I> index) {
            if (I == this->decided_)
                visit(child, index);
        });
    }
    template <class Child> static stored<typename Child::value_type> finish(Child &child) {
        if constexpr (std::is_void_v<typename Child::value_type>) {
            child.finish();
            return {};
        } else {
            return child.finish();
        }
    }

    std::tuple<Children...> children_;

private:
    template <std::size_t I> static std::coroutine_handle<> child_told(void *context) noexcept {
        auto &self = *static_cast<tuple_group *>(context);
        return self.told(I, std::get<I>(self.children_).failed());
    }
};

template <class Derived, bool FirstDecides, class Child>
class vector_group : public group_base<Derived, FirstDecides, Child::needs_token> {
public:
    explicit vector_group(std::vector<Child> children) : children_(std::move(children)), places_(children_.size()) {}
    vector_group(vector_group &&) = default;
    ~vector_group() { this->reset_stop(); }

    void start_children() {
        for (std::size_t i = 0; i < children_.size(); ++i) {
            places_[i] = {this, i};
            this->start_child(children_[i], i, {child_told, &places_[i]});
        }
    }
    void cancel_children() noexcept {
        for (Child &child : children_)
            child.cancel();
    }

protected:
    std::vector<Child> children_;

private:
    struct place {
        vector_group *group;
        std::size_t index;
    };
    static std::coroutine_handle<> child_told(void *context) noexcept {
        auto [group, index] = *static_cast<place *>(context);
        return group->told(index, group->children_[index].failed());
    }
    std::vector<place> places_;
};

/* finish_result() of what has only finish(). */
template <class Group> result<typename Group::value_type> result_of(Group &group) {
    try {
        return result<typename Group::value_type>(std::in_place, group.finish());
    } catch (...) {
        return result<typename Group::value_type>(std::current_exception());
    }
}

template <class... Children> class [[nodiscard]] all_of : public tuple_group<all_of<Children...>, false, Children...> {
public:
    using tuple_group<all_of, false, Children...>::tuple_group;
    using value_type = std::tuple<stored<typename Children::value_type>...>;

    bool failed() const noexcept { return this->decided_ != this->none; }
    value_type finish() {
        this->decider([](auto &child, auto) { (void)child.finish(); }); // throws
        return std::apply([](auto &...child) { return value_type{all_of::tuple_group::finish(child)...}; }, this->children_);
    }
    upcall::result<value_type> finish_result(bool) { return result_of(*this); }
};

template <class Child> class [[nodiscard]] all_in : public vector_group<all_in<Child>, false, Child> {
public:
    using vector_group<all_in, false, Child>::vector_group;
    using value_type = std::vector<stored<typename Child::value_type>>;

    bool failed() const noexcept { return this->decided_ != this->none; }
    value_type finish() {
        if (failed())
            (void)this->children_[this->decided_].finish(); // throws
        value_type values;
        values.reserve(this->children_.size());
        for (Child &child : this->children_)
            if constexpr (std::is_void_v<typename Child::value_type>)
                child.finish(), values.emplace_back();
            else
                values.push_back(child.finish());
        return values;
    }
    upcall::result<value_type> finish_result(bool) { return result_of(*this); }
};

} // namespace detail

/** @brief What when_any() answers. Since 0.1. */
template <class Results> struct any_result {
    std::size_t index; ///< which ended first
    Results results;   ///< a result of each: those that were stopped have ECANCELED, but one that was too late has its value
};

namespace detail {

template <class... Children> class [[nodiscard]] any_of : public tuple_group<any_of<Children...>, true, Children...> {
public:
    using tuple_group<any_of, true, Children...>::tuple_group;
    using value_type = any_result<std::tuple<upcall::result<typename Children::value_type>...>>;

    bool failed() const noexcept { return false; }
    value_type finish() {
        return [this]<std::size_t... I>(std::index_sequence<I...>) {
            return value_type{this->decided_, {std::get<I>(this->children_).finish_result(I == this->decided_)...}};
        }(std::index_sequence_for<Children...>());
    }
    upcall::result<value_type> finish_result(bool) { return result_of(*this); }
};

template <class Child> class [[nodiscard]] any_in : public vector_group<any_in<Child>, true, Child> {
public:
    using vector_group<any_in, true, Child>::vector_group;
    using value_type = any_result<std::vector<upcall::result<typename Child::value_type>>>;

    bool failed() const noexcept { return false; }
    value_type finish() {
        value_type answer{this->decided_, {}};
        answer.results.reserve(this->children_.size());
        for (std::size_t i = 0; i < this->children_.size(); ++i)
            answer.results.push_back(this->children_[i].finish_result(i == this->decided_));
        return answer;
    }
    upcall::result<value_type> finish_result(bool) { return result_of(*this); }
};

template <class... Children> class [[nodiscard]] first_of : public tuple_group<first_of<Children...>, true, Children...> {
public:
    using tuple_group<first_of, true, Children...>::tuple_group;
    using value_type = std::variant<stored<typename Children::value_type>...>;

    bool failed() const noexcept {
        bool is_failure = this->decided_ == this->none;
        const_cast<first_of *>(this)->decider([&](auto &child, auto) { is_failure = child.failed(); });
        return is_failure;
    }
    value_type finish() {
        std::optional<value_type> value;
        this->decider([&]<std::size_t I>(auto &child, std::integral_constant<std::size_t, I>) {
            value.emplace(std::in_place_index<I>, first_of::tuple_group::finish(child));
        });
        return std::move(*value);
    }
    upcall::result<value_type> finish_result(bool) { return result_of(*this); }
};

template <bool Linked, class... Ops>
class [[nodiscard]] submission : public group_base<submission<Linked, Ops...>, false, false> {
    using base = group_base<submission, false, false>;

public:
    using value_type = std::conditional_t<Linked, std::tuple<stored<typename Ops::value_type>...>,
                                          std::tuple<upcall::result<typename Ops::value_type>...>>;

    explicit submission(Ops... ops) : ops_(std::move(ops)...) {}
    submission(submission &&) = default;
    ~submission() { this->reset_stop(); }

    void start_children() noexcept {
        std::array<upcall_op, sizeof...(Ops)> ops;
        std::array<upcall_id, sizeof...(Ops)> ids;
        each([&]<std::size_t I>(auto &op, std::integral_constant<std::size_t, I>) {
            op.make();
            ops[I] = op.prepare({op_told, this});
            if (Linked && I + 1 < sizeof...(Ops))
                ops[I].flags |= UPCALL_LINK;
        });
        const int error = upcall_submit(std::get<0>(ops_).loop_core().native, ops.data(), ops.size(), ids.data());
        each([&]<std::size_t I>(auto &op, std::integral_constant<std::size_t, I>) {
            if (error < 0)
                op.refused(error);
            else
                op.accepted(ids[I]);
        });
        this->left_ = error < 0 ? 0 : sizeof...(Ops);
    }
    void cancel_children() noexcept {
        each([](auto &op, auto) { op.cancel(); });
    }
    bool failed() const noexcept {
        bool is_failure = false;
        if (Linked)
            std::apply([&](auto &...op) { is_failure = (op.failed() || ...); }, ops_);
        return is_failure;
    }
    value_type finish() {
        if constexpr (Linked) {
            // Those behind it were cancelled: the one that failed by itself is the reason.
            each([](auto &op, auto) {
                if (op.failed() && !op.was_cancelled())
                    (void)op.finish(); // throws
            });
            return std::apply([](auto &...op) { return value_type{one(op)...}; }, ops_);
        } else {
            return std::apply([](auto &...op) { return value_type{op.finish_result(true)...}; }, ops_);
        }
    }
    upcall::result<value_type> finish_result(bool) { return result_of(*this); }

private:
    template <class Visit> void each(Visit visit) {
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (visit(std::get<I>(ops_), std::integral_constant<std::size_t, I>()), ...);
        }(std::index_sequence_for<Ops...>());
    }
    template <class Op> static stored<typename Op::value_type> one(Op &op) {
        if constexpr (std::is_void_v<typename Op::value_type>) {
            op.finish();
            return {};
        } else {
            return op.finish();
        }
    }
    static std::coroutine_handle<> op_told(void *context) noexcept {
        return static_cast<submission *>(context)->told(0, false); // a failure stops nobody: that is what links are for
    }
    std::tuple<Ops...> ops_;
};

template <class A> class [[nodiscard]] stoppable : public awaitable<stoppable<A>> {
public:
    using value_type = typename A::value_type;
    static constexpr bool needs_token = false;

    stoppable(std::stop_token token, A inner) : token_(std::move(token)), inner_(std::move(inner)) {}
    stoppable(stoppable &&other) : token_(std::move(other.token_)), inner_(std::move(other.inner_)) {}
    ~stoppable() { reset(); }

    bool start(receiver told, const std::stop_token &outer) {
        told_ = told;
        if constexpr (A::needs_token) {
            source_ = std::stop_source();
            if (token_.stop_requested() || outer.stop_requested())
                source_.request_stop();
        }
        inner_token_ = source_.get_token();
        if (inner_.start({inner_told, this}, inner_token_))
            return true;
        on_token_.emplace(token_, canceller<stoppable>{this});
        on_outer_.emplace(outer, canceller<stoppable>{this});
        return false;
    }
    void cancel() noexcept {
        inner_.cancel();
        source_.request_stop();
    }
    with_result<stoppable> result() && { return as_result(std::move(*this)); }
    bool failed() const noexcept { return inner_.failed(); }
    value_type finish() { return inner_.finish(); }
    upcall::result<value_type> finish_result(bool wanted) { return inner_.finish_result(wanted); }

private:
    static std::coroutine_handle<> inner_told(void *context) noexcept {
        auto &self = *static_cast<stoppable *>(context);
        self.reset();
        return self.told_();
    }
    void reset() noexcept {
        on_outer_.reset();
        on_token_.reset();
    }

    std::stop_token token_;
    receiver told_;
    std::stop_source source_{std::nostopstate};
    std::stop_token inner_token_;
    A inner_;
    std::optional<stop_callback<stoppable>> on_token_, on_outer_;
};

} // namespace detail

/**
 * @brief `co_await when_all(a, b, …)`: starts all, waits for all, and gives a tuple of their values (std::monostate for none).
 *
 * When one throws, the others are stopped and waited for, and its exception is thrown. With .result() none throws, and none is
 * stopped. For operations, tasks, other groups, and multishot::next(). Since 0.1.
 */
template <class... A>
    requires(sizeof...(A) > 0 && (detail::startable<A> && ...))
detail::all_of<A...> when_all(A... awaitables) {
    return detail::all_of<A...>(std::move(awaitables)...);
}
/** @brief The same for a vector of equal ones; gives a vector. Since 0.1. */
template <class A>
    requires detail::startable<A>
detail::all_in<A> when_all(std::vector<A> awaitables) {
    return detail::all_in<A>(std::move(awaitables));
}

/**
 * @brief `auto [index, results] = co_await when_any(a, b, …)`: starts all; when the first has ended, however it did, stops the
 * others and waits for them. Gives a result of each, so that nothing is lost that came at the same time. Since 0.1.
 */
template <class... A>
    requires(sizeof...(A) > 0 && (detail::startable<A> && ...))
detail::any_of<A...> when_any(A... awaitables) {
    return detail::any_of<A...>(std::move(awaitables)...);
}
/** @brief The same for a vector, which is not empty, of equal ones. Since 0.1. */
template <class A>
    requires detail::startable<A>
detail::any_in<A> when_any(std::vector<A> awaitables) {
    if (awaitables.empty())
        throw std::invalid_argument("upcall::when_any: nothing to wait for");
    return detail::any_in<A>(std::move(awaitables));
}

/**
 * @brief `co_await race(a, b, …)`: as when_any(), but gives a std::variant with the value of the first alone, or throws its
 * error. What the others have got after all is closed, given back or dropped; values of a multishot stay there. Since 0.1.
 */
template <class... A>
    requires(sizeof...(A) > 0 && (detail::startable<A> && ...))
detail::first_of<A...> race(A... awaitables) {
    return detail::first_of<A...>(std::move(awaitables)...);
}

/**
 * @brief `co_await batch(op, …)`: all in one upcall_submit(), so that link(), link_always() and drain() can order them. Gives a
 * tuple of results. Since 0.1.
 */
template <class... Codecs>
    requires(sizeof...(Codecs) > 0)
detail::submission<false, operation<Codecs>...> batch(operation<Codecs>... ops) {
    return detail::submission<false, operation<Codecs>...>(std::move(ops)...);
}

/**
 * @brief `co_await chain(op, …)`: each starts when the one before it has succeeded in full. Gives a tuple of values, or throws the
 * error of the one that failed (ECANCELED after one that moved less than it was asked to). Since 0.1.
 */
template <class... Codecs>
    requires(sizeof...(Codecs) > 0)
detail::submission<true, operation<Codecs>...> chain(operation<Codecs>... ops) {
    return detail::submission<true, operation<Codecs>...>(std::move(ops)...);
}

/** @brief `co_await with_stop_token(token, a)`: `token`, besides the one of who awaits it, stops `a`. Since 0.1. */
template <class A>
    requires detail::startable<A>
detail::stoppable<A> with_stop_token(std::stop_token token, A awaitable) {
    return detail::stoppable<A>(std::move(token), std::move(awaitable));
}

// ---- scopes ----

class scope;

namespace detail {

/* The frame around what scope::spawn() was given. */
struct spawned {
    struct promise_type;
    std::coroutine_handle<promise_type> frame;
};

} // namespace detail

/** @brief `co_await s.join()`: waits until nothing is left in a scope. Since 0.1. */
class [[nodiscard]] scope_end : public detail::awaitable<scope_end> {
public:
    using value_type = void;
    static constexpr bool needs_token = false;

    explicit scope_end(scope &of) noexcept : of_(&of) {}
    scope_end(scope_end &&other) noexcept : of_(other.of_) {}
    inline ~scope_end();
    inline bool start(detail::receiver told, const std::stop_token &token);
    inline void cancel() noexcept;
    bool failed() const noexcept { return false; }
    void finish() const noexcept {}
    result<void> finish_result(bool) const { return result<void>(std::in_place); }

private:
    friend scope;
    scope *of_;
    detail::receiver told_;
    std::optional<detail::stop_callback<scope_end>> on_stop_;
};

/**
 * @brief Tasks that run by themselves, until they end, or the scope does. A loop has one: loop.spawn().
 *
 * Its destructor stops what is left, destroys it, newest first, and returns when nothing of it is in flight. Since 0.1.
 */
class scope {
public:
    /** @brief An empty one. */
    explicit inline scope(loop &in);
    scope(const scope &) = delete;
    scope &operator=(const scope &) = delete;
    inline ~scope();

    /**
     * @brief Starts a task, an operation or a group, from the loop's next turn on; its value is dropped. An exception that
     * leaves it comes out of loop.run() or loop.poll(), but for ECANCELED after request_stop().
     */
    template <class A>
        requires detail::startable<A>
    void spawn(A awaitable);
    /** @brief Asks all of them to end, as their stop token. Those that are spawned later are asked at once. Any thread. */
    void request_stop() noexcept { source_.request_stop(); }
    /** @brief `co_await s.join()`: until all have ended. A stop request to who awaits it is passed on to them. One at a time. */
    scope_end join() noexcept { return scope_end(*this); }
    /** @brief How many have not ended. */
    std::size_t size() const noexcept { return size_; }

private:
    friend loop;
    friend scope_end;
    friend detail::spawned::promise_type;

    explicit scope(detail::core &in) : core_(&in) {}
    inline void destroy_all() noexcept;
    inline void remove(detail::spawned::promise_type &promise);

    detail::core *core_;
    std::stop_source source_;
    std::stop_token token_ = source_.get_token();
    detail::list members_;
    std::size_t size_ = 0;
    scope_end *joiner_ = nullptr;
};

namespace detail {

/* Linked twice: as a member of its scope, and when it is to be started or has ended, in core::ready. */
struct spawned::promise_type : node {
    struct member : node {
        promise_type *promise;
    };

    template <class A> promise_type(scope &in, A &) noexcept : node(on_ready), home(&in) { place.promise = this; }

    spawned get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    auto final_suspend() noexcept {
        struct leave {
            bool await_ready() const noexcept { return false; }
            void await_suspend(std::coroutine_handle<promise_type> ended) const noexcept {
                ended.promise().home->core_->push(ended.promise());
            }
            void await_resume() const noexcept {}
        };
        return leave{};
    }
    void return_void() const noexcept {}
    void unhandled_exception() noexcept {
        std::exception_ptr exception = std::current_exception();
        if (!(stop_token().stop_requested() && code_of(exception) == std::errc::operation_canceled))
            home->core_->capture(std::move(exception));
    }
    const std::stop_token &stop_token() const noexcept { return home->token_; }

    static void on_ready(node &n) {
        auto &self = static_cast<promise_type &>(n);
        auto frame = std::coroutine_handle<promise_type>::from_promise(self);
        if (frame.done())
            self.home->remove(self);
        else
            frame.resume();
    }

    scope *home;
    member place;
};

template <class A> spawned run_spawned(scope &, A awaitable) { (void)co_await std::move(awaitable); }
template <class A>
    requires std::is_void_v<typename A::value_type>
spawned run_spawned(scope &, A awaitable) {
    co_await std::move(awaitable);
}

} // namespace detail

template <class A>
    requires detail::startable<A>
void scope::spawn(A awaitable) {
    auto &promise = detail::run_spawned(*this, std::move(awaitable)).frame.promise();
    members_.push_back(promise.place);
    ++size_;
    core_->push(promise);
}

inline void scope::destroy_all() noexcept {
    request_stop();
    while (!members_.empty()) {
        auto &promise = *static_cast<detail::spawned::promise_type::member &>(members_.back()).promise;
        std::coroutine_handle<detail::spawned::promise_type>::from_promise(promise).destroy();
    }
    size_ = 0;
}

inline scope::~scope() { destroy_all(); }

inline void scope::remove(detail::spawned::promise_type &promise) {
    std::coroutine_handle<detail::spawned::promise_type>::from_promise(promise).destroy();
    if (--size_ > 0 || !joiner_)
        return;
    scope_end &joiner = *std::exchange(joiner_, nullptr);
    joiner.on_stop_.reset();
    joiner.told_().resume();
}

inline scope_end::~scope_end() {
    if (of_->joiner_ == this)
        of_->joiner_ = nullptr;
}
inline bool scope_end::start(detail::receiver told, const std::stop_token &token) {
    if (of_->size_ == 0)
        return true;
    told_ = told;
    of_->joiner_ = this;
    if (token.stop_possible())
        on_stop_.emplace(token, detail::canceller<scope_end>{this});
    return false;
}
inline void scope_end::cancel() noexcept { of_->request_stop(); }

// ---- callbacks ----

/**
 * @brief A callable for an operation without coroutines, called as `f(const upcall_event &)` once per event:
 * loop.submit(op, completion). It holds the callable, so nothing is allocated; one operation at a time.
 *
 * It is called inside a turn of the loop; an exception comes out of loop.run() or loop.poll(). In its final event it may submit
 * the same completion again, or destroy it. Destroyed while its operation is in flight, it cancels and waits. Since 0.1.
 */
template <class F> class completion {
public:
    /** @brief Holds `f`. */
    explicit completion(F f) : function_(std::move(f)) {}
    completion(const completion &) = delete;
    completion &operator=(const completion &) = delete;
    ~completion() {
        if (!is_busy())
            return;
        cancel();
        core_->wait([this] { return !is_busy(); });
    }

    /** @brief Whether its operation is in flight. */
    bool is_busy() const noexcept { return id_ != 0; }
    /** @brief Asks its operation to end. */
    void cancel() noexcept {
        if (is_busy())
            upcall_cancel(core_->native, id_);
    }

private:
    friend loop;

    static void on_event(upcall_loop *, const upcall_event *event) noexcept {
        auto &self = *static_cast<completion *>(event->user);
        detail::core &loop = *self.core_;
        if ((event->flags & UPCALL_MORE) == 0) {
            self.id_ = 0;
            loop.count_out(self.flags_);
        }
        try {
            self.function_(*event);
        } catch (...) {
            loop.capture(std::current_exception());
        }
    }

    detail::core *core_ = nullptr;
    upcall_id id_ = 0;
    std::uint32_t flags_ = 0;
    F function_;
};

// ---- the loop ----

/** @brief An upcall_config that begins with the defaults. Since 0.1. */
struct config : upcall_config {
    config() noexcept { upcall_config_init_sized(this, sizeof(upcall_config)); }
};

/** @brief A pool of equal buffers of a loop. It lasts as long as a buffer is lent or an operation uses it. Since 0.1. */
class buffers {
public:
    /** @brief `count` buffers of `size` bytes: upcall_buffers_new(). */
    inline buffers(loop &of, std::uint32_t count, std::uint32_t size);
    /** @brief The pool, for upcall.h. */
    upcall_buffers *native() const noexcept { return pool_.get(); }
    /** @brief A share of it. */
    const std::shared_ptr<upcall_buffers> &share() const noexcept { return pool_; }

private:
    std::shared_ptr<upcall_buffers> pool_;
};

inline lent_buffer::lent_buffer(const buffers &pool, const upcall_event &event) noexcept
    : lent_buffer(pool.share(), event.buffer, event.transferred) {}

/** @brief Keeps loop.run() going while it exists. Since 0.1. */
class [[nodiscard]] hold {
public:
    /** @brief upcall_hold(). */
    explicit hold(upcall_loop *loop) noexcept : loop_(loop) { upcall_hold(loop); }
    hold(hold &&other) noexcept : loop_(std::exchange(other.loop_, nullptr)) {}
    hold &operator=(hold &&other) noexcept {
        std::swap(loop_, other.loop_);
        return *this;
    }
    ~hold() {
        if (loop_)
            upcall_unhold(loop_);
    }

private:
    upcall_loop *loop_;
};

/**
 * @brief A loop. It stays where it was made; its destructor ends what is in flight, destroys what was spawned, and returns when
 * nothing touches the program's memory any more. Since 0.1.
 */
class loop {
    template <class T> using number = operation<detail::number<T>>;
    using size_operation = number<std::size_t>;
    using void_operation = number<void>;
    using nanoseconds = std::chrono::duration<long double, std::nano>;

public:
    // ---- the verbs ----

    /** @brief upcall_loop_new(); throws std::system_error. */
    explicit loop(const upcall_config &config = upcall::config()) {
        check(upcall_loop_new(&config, &core_.native));
    }
    loop(const loop &) = delete;
    loop &operator=(const loop &) = delete;
    ~loop() {
        core_.in_turn = true;
        const bool is_closed = upcall_loop_close(core_.native, -1) == 0;
        core_.in_turn = false;
        if (is_closed)
            spawned_.destroy_all();
        core_.in_turn = true;
        if (upcall_loop_free(core_.native) < 0)
            std::terminate(); // in its own callback, or on another thread
        core_.in_turn = false;
        core_.native = nullptr;
        // Its owner thread has exited, or this is a forked child: only now has everything ended.
        spawned_.destroy_all();
    }

    /** @brief The loop, for upcall.h. Turn it with run() and poll(), end run() with stop(). */
    upcall_loop *native() const noexcept { return core_.native; }
    /** @brief For awaitables made elsewhere. */
    detail::core &internals() noexcept { return core_; }

    /**
     * @brief Turns the loop until nothing is in flight (false) or stop() (true), as upcall_run(). What waits for nothing in
     * flight, as a join() of nothing or another thread's word, does not keep it: hold().
     */
    bool run() {
        activity active(core_);
        int delivered = 1;
        for (;;) {
            core_.resume_ready();
            if (core_.stopped.load()) {
                take_stop();
                core_.resume_ready();
                return true;
            }
            // upcall_run() knows when nothing is left, and minds upcall_stop(); returning from it costs a turn.
            if (core_.keeping > 0 && delivered > 0) {
                delivered = check(core_.turn(-1));
                continue;
            }
            delivered = 1;
            const int answer = check(core_.native_run());
            if (answer == core_.stop) {
                core_.stopped.store(false);
                core_.resume_ready();
                return true;
            }
            if (answer == core_.idle && core_.ready.empty() && core_.errors.empty())
                return false;
        }
    }
    /**
     * @brief Starts a task, an operation or a group, turns the loop until it has ended, and gives its value. stop() stops it.
     * What else was spawned goes on meanwhile, and stays afterwards.
     */
    template <class A>
        requires detail::startable<A>
    typename A::value_type run(A awaitable) {
        activity active(core_);
        std::stop_source source{std::nostopstate};
        if constexpr (A::needs_token)
            source = std::stop_source();
        const std::stop_token token = source.get_token();
        bool is_done = false;
        const auto done = [](void *flag) noexcept -> std::coroutine_handle<> {
            *static_cast<bool *>(flag) = true;
            return std::noop_coroutine();
        };
        is_done = awaitable.start({done, &is_done}, token);
        for (;;) {
            core_.resume_ready();
            if (is_done)
                return awaitable.finish();
            if (core_.stopped.load()) {
                take_stop();
                source.request_stop();
                awaitable.cancel();
                core_.resume_ready();
                continue;
            }
            check(core_.turn(-1));
        }
    }
    /** @brief One turn, as upcall_poll(), and what it lets go on. Answers how many events were delivered. */
    int poll(std::chrono::nanoseconds timeout) { return turn(static_cast<std::int64_t>(std::max<std::chrono::nanoseconds::rep>(timeout.count(), 0))); }
    /** @brief One turn, which waits without limit. */
    int poll() { return turn(-1); }
    /** @brief Ends the current or next run(). Any thread, and any signal handler. */
    void stop() noexcept {
        core_.stopped.store(true);
        upcall_stop(core_.native);
    }

    /** @brief Starts a task, an operation or a group by itself: scope::spawn(), until the loop ends. */
    template <class A>
        requires detail::startable<A>
    void spawn(A awaitable) {
        spawned_.spawn(std::move(awaitable));
    }
    /** @brief Where spawn() puts them: to stop them all, or to wait for them. */
    scope &tasks() noexcept { return spawned_; }

    /** @brief Submits `op`, and calls `to` with its events. Throws what upcall_submit() refuses; EBUSY: `to` is busy. */
    template <class F> void submit(upcall_op op, completion<F> &to) {
        if (to.is_busy())
            throw std::system_error(make_error(-EBUSY), "upcall::completion");
        op.callback = completion<F>::on_event;
        op.user = &to;
        to.core_ = &core_;
        to.flags_ = op.flags;
        check(upcall_submit(core_.native, &op, 1, &to.id_));
        core_.count_in(op.flags);
    }
    /** @brief The same with options set as for co_await. */
    template <class Codec, class F> void submit(operation<Codec> op, completion<F> &to) { submit(op.native(), to); }

    /** @brief Calls `f()` in a turn of the loop, once. Any thread. `f` is allocated. An exception comes out of run() or poll(). */
    template <class F> void post(F f) {
        struct posted {
            detail::core *loop;
            F function;
            std::atomic<bool> is_ready{false}; // hands `function` over, where a race detector can see it
        };
        std::unique_ptr<posted> message(new posted{&core_, std::move(f)});
        message->is_ready.store(true, std::memory_order_release);
        check(upcall_post(
            core_.native,
            [](upcall_loop *, void *arg) noexcept {
                std::unique_ptr<posted> self(static_cast<posted *>(arg));
                (void)self->is_ready.load(std::memory_order_acquire);
                try {
                    self->function();
                } catch (...) {
                    self->loop->capture(std::current_exception());
                }
            },
            message.get()));
        message.release();
    }

    /** @brief Keeps run() going without an operation. Any thread. */
    upcall::hold hold() noexcept { return upcall::hold(core_.native); }
    /** @brief upcall_cancel_fd(): asks every operation on `fd` to end. Any thread. */
    int cancel_fd(int fd) noexcept { return upcall_cancel_fd(core_.native, fd); }
    /** @brief upcall_cancel_all(). Any thread. */
    int cancel_all() noexcept { return upcall_cancel_all(core_.native); }
    /** @brief upcall_reap(): the events of what was submitted by upcall.h without a callback. */
    std::span<upcall_event> reap(std::span<upcall_event> room) {
        return room.first(static_cast<std::size_t>(check(upcall_reap(core_.native, room.data(), room.size()))));
    }
    /** @brief upcall_fd(): readable whenever poll(0s) would do anything. */
    int fd() { return check(upcall_fd(core_.native)); }
    /** @brief The time of this turn. */
    std::chrono::steady_clock::time_point now() const noexcept {
        return std::chrono::steady_clock::time_point(
            std::chrono::nanoseconds(static_cast<std::int64_t>(upcall_now(core_.native))));
    }
    /** @brief upcall_loop_detach(): the next thread to turn the loop owns it. */
    void detach() { check(upcall_loop_detach(core_.native)); }
    /** @brief UPCALL_BACKEND_IO_URING or _EPOLL. Any thread. */
    upcall_backend backend() const noexcept { return upcall_loop_backend(core_.native); }
    /** @brief Its name. Any thread. */
    std::string_view backend_name() const noexcept { return upcall_backend_name(backend()); }
    /** @brief Why it has this backend. Any thread. */
    std::string_view backend_reason() const noexcept { return upcall_backend_reason(core_.native); }
    /** @brief upcall_supports(): UPCALL_NATIVE, _EMULATED or _UNSUPPORTED. Any thread. */
    int supports(upcall_kind kind) const noexcept { return upcall_supports(core_.native, kind); }
    /** @brief The counters. Any thread. */
    upcall_stats stats() const noexcept {
        upcall_stats stats{};
        upcall_stats_get(core_.native, &stats);
        return stats;
    }
    /** @brief upcall_register_buffers(): pins memory for pread and pwrite. */
    void register_buffers(std::span<const iovec> memory) {
        check(upcall_register_buffers(core_.native, memory.data(), static_cast<std::uint32_t>(memory.size())));
    }
    /** @brief upcall_unregister_buffers(). */
    void unregister_buffers() { check(upcall_unregister_buffers(core_.native)); }

    // ---- streams: upcall_op_read() and so on ----

    /** @brief upcall_op_read(). */
    size_operation read(int fd, bytes to) { return {core_, upcall_op_read(fd, to.data, to.size)}; }
    /** @brief upcall_op_read() into a buffer of `pool`, at most `most` bytes; 0: all of it. */
    operation<detail::lent> read(int fd, const buffers &pool, std::size_t most = 0) {
        return lending(upcall_op_read(fd, nullptr, most), pool);
    }
    /** @brief upcall_op_write(). */
    size_operation write(int fd, const_bytes from) { return {core_, upcall_op_write(fd, from.data, from.size)}; }
    /** @brief upcall_op_readv(). */
    size_operation readv(int fd, std::span<const iovec> to) { return {core_, upcall_op_readv(fd, to.data(), to.size())}; }
    /** @brief upcall_op_writev(). */
    size_operation writev(int fd, std::span<const iovec> from) {
        return {core_, upcall_op_writev(fd, from.data(), from.size())};
    }
    /** @brief upcall_op_splice(). */
    size_operation splice(int in, std::int64_t off_in, int out, std::int64_t off_out, std::size_t len,
                          std::uint32_t flags = 0) {
        return {core_, upcall_op_splice(in, off_in, out, off_out, len, flags)};
    }
    /** @brief upcall_op_tee(). */
    size_operation tee(int in, int out, std::size_t len, std::uint32_t flags = 0) {
        return {core_, upcall_op_tee(in, out, len, flags)};
    }
    /** @brief upcall_op_sendfile(). */
    size_operation sendfile(int out, int in, std::int64_t offset, std::size_t len) {
        return {core_, upcall_op_sendfile(out, in, offset, len)};
    }
    /** @brief upcall_op_copy_range(). */
    size_operation copy_range(int in, std::int64_t off_in, int out, std::int64_t off_out, std::size_t len,
                              std::uint32_t flags = 0) {
        return {core_, upcall_op_copy_range(in, off_in, out, off_out, len, flags)};
    }

    // ---- files ----

    /** @brief upcall_op_pread(). */
    size_operation pread(int fd, bytes to, std::int64_t offset) {
        return {core_, upcall_op_pread(fd, to.data, to.size, offset)};
    }
    /** @brief upcall_op_pwrite(). */
    size_operation pwrite(int fd, const_bytes from, std::int64_t offset) {
        return {core_, upcall_op_pwrite(fd, from.data, from.size, offset)};
    }
    /** @brief upcall_op_preadv(). */
    size_operation preadv(int fd, std::span<const iovec> to, std::int64_t offset, int rwf_flags = 0) {
        return {core_, upcall_op_preadv(fd, to.data(), to.size(), offset, rwf_flags)};
    }
    /** @brief upcall_op_pwritev(). */
    size_operation pwritev(int fd, std::span<const iovec> from, std::int64_t offset, int rwf_flags = 0) {
        return {core_, upcall_op_pwritev(fd, from.data(), from.size(), offset, rwf_flags)};
    }
    /** @brief upcall_op_fsync(). */
    void_operation fsync(int fd) { return {core_, upcall_op_fsync(fd)}; }
    /** @brief upcall_op_fdatasync(). */
    void_operation fdatasync(int fd) { return {core_, upcall_op_fdatasync(fd)}; }
    /** @brief upcall_op_sync_range(). */
    void_operation sync_range(int fd, std::int64_t offset, std::int64_t len, std::uint32_t flags) {
        return {core_, upcall_op_sync_range(fd, offset, len, flags)};
    }
    /** @brief upcall_op_fallocate(). */
    void_operation fallocate(int fd, int mode, std::int64_t offset, std::int64_t len) {
        return {core_, upcall_op_fallocate(fd, mode, offset, len)};
    }
    /** @brief upcall_op_ftruncate(). */
    void_operation ftruncate(int fd, std::int64_t len) { return {core_, upcall_op_ftruncate(fd, len)}; }
    /** @brief upcall_op_fadvise(). */
    void_operation fadvise(int fd, std::int64_t offset, std::int64_t len, int advice) {
        return {core_, upcall_op_fadvise(fd, offset, len, advice)};
    }
    /** @brief upcall_op_madvise(). */
    void_operation madvise(void *addr, std::size_t len, int advice) {
        return {core_, upcall_op_madvise(addr, len, advice)};
    }

    // ---- paths ----

    /** @brief upcall_op_open(). */
    operation<detail::opened> open(int dirfd, cstring path, int flags, mode_t mode = 0) {
        return {core_, upcall_op_open(dirfd, path.text, flags, mode)};
    }
    /** @brief upcall_op_openat2(). */
    operation<detail::opened> openat2(int dirfd, cstring path, const open_how *how, std::size_t size) {
        return {core_, upcall_op_openat2(dirfd, path.text, how, size)};
    }
    /** @brief upcall_op_close(). No stop token ends it, and a destructor waits until it is done. */
    operation<detail::closed> close(int fd) { return closing(fd, descriptor()); }
    /** @brief The same; `fd` is closed also if this is never awaited. */
    operation<detail::closed> close(descriptor &&fd) {
        const int owned = fd.get();
        return closing(owned, std::move(fd));
    }
    operation<detail::closed> close(descriptor &) = delete; // would be closed twice: std::move it
    /** @brief upcall_op_statx(). */
    operation<detail::status> statx(int dirfd, cstring path, int flags = 0, unsigned mask = STATX_BASIC_STATS) {
        return {core_, {}, detail::status{dirfd, path.text, flags, mask}};
    }
    /** @brief upcall_op_rename(). */
    void_operation rename(int olddirfd, cstring old, int newdirfd, cstring new_name, unsigned flags = 0) {
        return {core_, upcall_op_rename(olddirfd, old.text, newdirfd, new_name.text, flags)};
    }
    /** @brief upcall_op_unlink(). */
    void_operation unlink(int dirfd, cstring path, int flags = 0) {
        return {core_, upcall_op_unlink(dirfd, path.text, flags)};
    }
    /** @brief upcall_op_mkdir(). */
    void_operation mkdir(int dirfd, cstring path, mode_t mode) { return {core_, upcall_op_mkdir(dirfd, path.text, mode)}; }
    /** @brief upcall_op_symlink(). */
    void_operation symlink(cstring target, int dirfd, cstring path) {
        return {core_, upcall_op_symlink(target.text, dirfd, path.text)};
    }
    /** @brief upcall_op_hardlink(). */
    void_operation hardlink(int olddirfd, cstring old, int newdirfd, cstring new_name, int flags = 0) {
        return {core_, upcall_op_hardlink(olddirfd, old.text, newdirfd, new_name.text, flags)};
    }
    /** @brief upcall_op_readdir(); upcall::dirents walks what it read. */
    size_operation readdir(int fd, bytes to) { return {core_, upcall_op_readdir(fd, to.data, to.size)}; }
    /** @brief upcall_op_readdir() into a buffer of `pool`: lent_buffer::entries(). */
    operation<detail::lent> readdir(int fd, const buffers &pool) {
        return lending(upcall_op_readdir(fd, nullptr, 0), pool);
    }
    /** @brief upcall_op_getxattr(). */
    size_operation getxattr(cstring path, cstring name, bytes value) {
        return {core_, upcall_op_getxattr(path.text, name.text, value.data, value.size)};
    }
    /** @brief upcall_op_setxattr(). */
    void_operation setxattr(cstring path, cstring name, const_bytes value, int flags = 0) {
        return {core_, upcall_op_setxattr(path.text, name.text, value.data, value.size, flags)};
    }
    /** @brief upcall_op_fgetxattr(). */
    size_operation fgetxattr(int fd, cstring name, bytes value) {
        return {core_, upcall_op_fgetxattr(fd, name.text, value.data, value.size)};
    }
    /** @brief upcall_op_fsetxattr(). */
    void_operation fsetxattr(int fd, cstring name, const_bytes value, int flags = 0) {
        return {core_, upcall_op_fsetxattr(fd, name.text, value.data, value.size, flags)};
    }

    // ---- sockets ----

    /** @brief upcall_op_socket(). */
    operation<detail::opened> socket(int domain, int type, int protocol = 0) {
        return {core_, upcall_op_socket(domain, type, protocol)};
    }
    /** @brief upcall_op_bind(). */
    void_operation bind(int fd, address to) { return {core_, upcall_op_bind(fd, to.data, to.size)}; }
    /** @brief upcall_op_listen(). */
    void_operation listen(int fd, int backlog = SOMAXCONN) { return {core_, upcall_op_listen(fd, backlog)}; }
    /** @brief upcall_op_accept(). */
    operation<detail::accepted> accept(int fd, int flags = 0) {
        return {core_, upcall_op_accept(fd, nullptr, nullptr, flags)};
    }
    /** @brief upcall_op_accept() with the peer's address. */
    operation<detail::opened> accept(int fd, sockaddr *from, socklen_t *from_size, int flags = 0) {
        return {core_, upcall_op_accept(fd, from, from_size, flags)};
    }
    /** @brief upcall_op_connect(). */
    void_operation connect(int fd, address to) { return {core_, upcall_op_connect(fd, to.data, to.size)}; }
    /** @brief upcall_op_recv(). */
    size_operation recv(int fd, bytes to, int flags = 0) { return {core_, upcall_op_recv(fd, to.data, to.size, flags)}; }
    /** @brief upcall_op_recv() into a buffer of `pool`. */
    operation<detail::lent> recv(int fd, const buffers &pool, int flags = 0) {
        return lending(upcall_op_recv(fd, nullptr, 0, flags), pool);
    }
    /** @brief upcall_op_send(). */
    size_operation send(int fd, const_bytes from, int flags = 0) {
        return {core_, upcall_op_send(fd, from.data, from.size, flags)};
    }
    /** @brief upcall_op_recvfrom(). */
    size_operation recvfrom(int fd, bytes to, sockaddr *from, socklen_t *from_size, int flags = 0) {
        return {core_, upcall_op_recvfrom(fd, to.data, to.size, flags, from, from_size)};
    }
    /** @brief upcall_op_sendto(). */
    size_operation sendto(int fd, const_bytes from, address to, int flags = 0) {
        return {core_, upcall_op_sendto(fd, from.data, from.size, flags, to.data, to.size)};
    }
    /** @brief upcall_op_recvmsg(). */
    size_operation recvmsg(int fd, msghdr *msg, int flags = 0) { return {core_, upcall_op_recvmsg(fd, msg, flags)}; }
    /** @brief upcall_op_recvmsg() into a buffer of `pool`, with so much room for the sender's address and control data. */
    operation<detail::lent_messages> recvmsg(int fd, const buffers &pool, socklen_t name_room = 0,
                                             std::size_t control_room = 0, int flags = 0) {
        detail::lent_messages codec{pool.share(), fd, flags};
        codec.room.msg_namelen = name_room;
        codec.room.msg_controllen = control_room;
        upcall_op options{};
        options.buffers = pool.native();
        return {core_, options, std::move(codec)};
    }
    /** @brief upcall_op_sendmsg(). */
    size_operation sendmsg(int fd, const msghdr *msg, int flags = 0) {
        return {core_, upcall_op_sendmsg(fd, msg, flags)};
    }
    /** @brief upcall_op_shutdown(). */
    void_operation shutdown(int fd, int how) { return {core_, upcall_op_shutdown(fd, how)}; }
    /** @brief upcall_op_getsockopt(). */
    void_operation getsockopt(int fd, int level, int name, void *value, socklen_t *size) {
        return {core_, upcall_op_getsockopt(fd, level, name, value, size)};
    }
    /** @brief upcall_op_getsockopt() of a value of this type: `co_await loop.getsockopt<int>(fd, SOL_SOCKET, SO_ERROR)`. */
    template <class T> operation<detail::option<T>> getsockopt(int fd, int level, int name) {
        return {core_, {}, detail::option<T>{fd, level, name}};
    }
    /** @brief upcall_op_setsockopt(). */
    void_operation setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
        return {core_, upcall_op_setsockopt(fd, level, name, value, size)};
    }
    /** @brief upcall_op_setsockopt() of a value of this type: an int, a linger, a timeval … */
    template <class T>
        requires(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>)
    operation<detail::set_option<T>> setsockopt(int fd, int level, int name, const T &value) {
        return {core_, {}, detail::set_option<T>(fd, level, name, value)};
    }
    /** @brief upcall_op_pipe(). */
    operation<detail::piped> pipe(int flags = 0) { return {core_, {}, detail::piped{flags}}; }

    // ---- readiness, time, processes, computation ----

    /** @brief upcall_op_nop(). */
    void_operation nop() { return {core_, upcall_op_nop()}; }
    /** @brief upcall_op_poll(): the events seen. */
    operation<detail::readiness> poll(int fd, std::uint32_t events) { return {core_, upcall_op_poll(fd, events)}; }
    /** @brief upcall_op_sleep(). */
    operation<detail::ticking> sleep(nanoseconds time) {
        return {core_, upcall_op_sleep(detail::to_nanoseconds(time))};
    }
    /** @brief upcall_op_sleep_until(). */
    void_operation sleep_until(std::chrono::steady_clock::time_point time) {
        return {core_, upcall_op_sleep_until(detail::to_nanoseconds(time.time_since_epoch()))};
    }
    /** @brief upcall_op_signal(). */
    operation<detail::signals> signal(int signo) { return {core_, upcall_op_signal(signo)}; }
    /** @brief upcall_op_waitid(). */
    operation<detail::waited> waitid(idtype_t idtype, id_t id, int options) {
        return {core_, {}, detail::waited{idtype, id, options}};
    }
    /** @brief upcall_op_futex_wait(): true: woken; false: it was another value already. */
    operation<detail::woken> futex_wait(std::uint32_t *addr, std::uint32_t value, std::uint64_t mask = 0xffffffff,
                                        std::uint32_t flags = UPCALL_FUTEX_PRIVATE) {
        return {core_, upcall_op_futex_wait(addr, value, mask, flags)};
    }
    /** @brief upcall_op_futex_wake(): how many were woken. */
    number<int> futex_wake(std::uint32_t *addr, std::uint32_t count = 1, std::uint64_t mask = 0xffffffff,
                           std::uint32_t flags = UPCALL_FUTEX_PRIVATE) {
        return {core_, upcall_op_futex_wake(addr, count, mask, flags)};
    }
    /** @brief upcall_op_work(): runs `f()` on a thread of the pool, and gives what it returns, or throws what it throws. */
    template <class F>
        requires std::invocable<F &>
    operation<detail::computed<F>> work(F f) {
        return {core_, {}, detail::computed<F>(std::move(f))};
    }
    /** @brief upcall_op_getaddrinfo(). */
    operation<detail::resolved> getaddrinfo(const char *node, const char *service, const addrinfo *hints = nullptr) {
        return {core_, {}, detail::resolved{node, service, hints}};
    }

private:
    friend class scope;
    friend class buffers;

    /* run() and poll() are not called inside each other. */
    struct activity {
        detail::core &core;
        explicit activity(detail::core &c) : core(c) {
            if (core.active || core.in_turn)
                throw std::system_error(make_error(-EDEADLK), "upcall::loop: a turn is under way");
            core.active = true;
        }
        activity(const activity &) = delete;
        activity &operator=(const activity &) = delete;
        ~activity() {
            core.active = false;
            if (!core.ready.empty() || !core.errors.empty())
                core.attend();
        }
    };

    static int check(int answer) {
        if (answer < 0)
            throw std::system_error(make_error(answer), upcall_last_error());
        return answer;
    }
    int turn(std::int64_t timeout_ns) {
        activity active(core_);
        const bool had_work = !core_.ready.empty();
        core_.resume_ready();
        const int delivered = check(core_.turn(had_work ? 0 : timeout_ns));
        core_.resume_ready();
        return delivered;
    }
    /* stop() has called upcall_stop(), or is about to: takes that back. */
    void take_stop() {
        core_.called_back = true; // nobody calls it back from this one
        core_.native_run();
        core_.stopped.store(false);
    }

    operation<detail::lent> lending(upcall_op op, const buffers &pool) {
        op.buffers = pool.native();
        return {core_, op, detail::lent{pool.share()}};
    }
    operation<detail::closed> closing(int fd, descriptor owned) {
        detail::closed codec;
        codec.fd = fd;
        codec.owned = std::move(owned);
        return operation<detail::closed>(core_, {}, std::move(codec)).unstoppable();
    }

    detail::core core_;
    scope spawned_{core_};
};

inline scope::scope(loop &in) : scope(in.internals()) {}

inline buffers::buffers(loop &of, std::uint32_t count, std::uint32_t size) {
    upcall_buffers *pool = nullptr;
    loop::check(upcall_buffers_new(of.native(), count, size, &pool));
    pool_.reset(pool, upcall_buffers_free);
}

} // namespace v0_1
} // namespace upcall

#endif
