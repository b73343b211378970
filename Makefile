# The way in from a fresh checkout: `make demo` and `make test` do all the set-up. The build itself is CMake's.

BUILD ?= build/release
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: demo test test-masks test-kernels test-races soak bench bench-quick bench-steady clean

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

# Ten million races of cancel and completion for each kind of wait, and the other races for a minute each: some hours.
RACES ?= 10000000
test-races:
	tools/setup.sh test
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD)
	tests/races/run.sh $(BUILD) $(RACES)

# Everything at once, for an hour on each backend: SOAK_SECONDS=600 for ten minutes.
SOAK_SECONDS ?= 3600
soak:
	tools/setup.sh test
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) --target soak
	$(BUILD)/tests/soak --backend io_uring --seconds $(SOAK_SECONDS)
	$(BUILD)/tests/soak --backend epoll --seconds $(SOAK_SECONDS)

# Every pair in turns, about twelve minutes on a machine that has nothing else to do; writes docs/bench and the tables of
# docs/performance.md. ONLY="nop read" for some of it; bench-quick writes nothing and proves nothing about speed.
bench bench-quick:
	tools/setup.sh bench
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) --target upcall_bench
	bench/run.py --build $(BUILD) --only "$(ONLY)" $(if $(findstring quick,$@),--quick,--out docs/bench)

# Upcall alone: allocations and system calls in the steady state, an idle loop, the read-ahead reader.
bench-steady:
	tools/setup.sh bench
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) --target upcall_bench
	UPCALL_BACKEND=io_uring $(BUILD)/bench/steady_bench
	UPCALL_BACKEND=epoll $(BUILD)/bench/steady_bench
	UPCALL_BACKEND=io_uring $(BUILD)/bench/reader_bench
	UPCALL_BACKEND=epoll $(BUILD)/bench/reader_bench

clean:
	rm -rf build target
