/* upcall.hpp alone, included twice, under strict warnings; its templates are seen by tests/cpp. */
#include <upcall.hpp>
#include <upcall.hpp>

static_assert(!std::is_copy_constructible_v<upcall::loop> && !std::is_copy_constructible_v<upcall::task<>>);
static_assert(std::is_nothrow_move_constructible_v<upcall::task<int>>);
static_assert(std::is_nothrow_move_constructible_v<upcall::lent_buffer>);

// What would be a mistake does not compile.
template <class F> concept closes_a_borrowed_descriptor = requires(upcall::loop &l, F &fd) { l.close(fd); };
static_assert(!closes_a_borrowed_descriptor<upcall::descriptor> && closes_a_borrowed_descriptor<int>);
static_assert(!std::is_convertible_v<upcall::descriptor, int> && std::is_convertible_v<upcall::descriptor &, int>);
static_assert(!std::is_constructible_v<upcall::const_bytes, const char (&)[6]>);
static_assert(std::is_constructible_v<upcall::const_bytes, std::string>);
static_assert(!std::is_constructible_v<upcall::bytes, const std::string &> && !std::is_constructible_v<upcall::bytes, std::string>);
static_assert(!upcall::detail::startable<int> && upcall::detail::startable<upcall::task<>>);

int main() {
    upcall::loop loop;
    return loop.run([](upcall::loop &l) -> upcall::task<int> {
        char text[16];
        auto read = co_await l.read(0, text).timeout(std::chrono::seconds(1)).result();
        co_return read ? 0 : 1;
    }(loop));
}
