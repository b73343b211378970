/* The smallest user of Upcall in coroutines. */
#include <upcall.hpp>

#include <cstdio>

upcall::task<int> answer(upcall::loop &loop) {
    co_await loop.sleep(std::chrono::milliseconds(1));
    co_return co_await loop.work([] { return 42; });
}

int main() {
    upcall::loop loop;
    std::printf("Upcall %s on %s\n", upcall_version(), loop.backend_name().data());
    return loop.run(answer(loop)) == 42 ? 0 : 1;
}
