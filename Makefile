# The way in from a fresh checkout: `make demo` and `make test` do all the set-up. The build itself is CMake's.

BUILD ?= build/release
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: demo test test-masks test-kernels test-denied test-valgrind bench clean

demo:
	tools/setup.sh build
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) --target upcall_examples
	tools/demo.sh $(BUILD)

test:
	tools/setup.sh test
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure --parallel 2

# Every C test once per feature of the ring and per newer operation, hidden and refused: half an hour or more.
test-masks:
	tools/setup.sh test
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD)
	tests/masks.sh $(BUILD)

# On other kernels, in virtual machines: an hour and more. KERNELS="6.1 newest" to choose.
test-kernels:
	tools/setup.sh build
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) --target upcall_cargo
	tests/kernels/run.sh $(BUILD) $(KERNELS)

# Every C test in every environment of tests/denied/denied.c: half an hour. ENVIRONMENTS="kill nproc-1" to choose; MACHINE=1
# where no other program needs io_uring meanwhile: then also under kernel.io_uring_disabled, which is the whole machine's.
test-denied:
	tools/setup.sh test
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD)
	tests/denied/run.sh $(BUILD) $(ENVIRONMENTS)

# Every C test under Valgrind's memcheck, on both backends: an hour or more. TESTS="op_file reader" to choose.
test-valgrind:
	tools/setup.sh valgrind
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD)
	tests/sanitizers/valgrind.sh $(BUILD) $(TESTS)

bench:
	tools/setup.sh bench
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) --target figures reader_bench
	UPCALL_BACKEND=io_uring $(BUILD)/bench/figures
	UPCALL_BACKEND=epoll $(BUILD)/bench/figures
	UPCALL_BACKEND=io_uring $(BUILD)/bench/reader_bench
	UPCALL_BACKEND=epoll $(BUILD)/bench/reader_bench

clean:
	rm -rf build target
