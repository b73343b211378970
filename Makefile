# The way in from a fresh checkout: `make demo` and `make test` do all the set-up. The build itself is CMake's.

BUILD ?= build/release
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: demo test test-masks test-kernels test-models test-torture test-races test-denied test-valgrind
.PHONY: fuzz soak bench bench-quick bench-steady manual docs clean

# $(call build,<what setup.sh is to install>,<targets, all by default>)
define build
tools/setup.sh $(1)
cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
cmake --build $(BUILD)$(if $(2), $(2))
endef

demo:
	$(call build,build,--target upcall_examples)
	tools/demo.sh $(BUILD)

test:
	$(call build,test)
	ctest --test-dir $(BUILD) --output-on-failure --parallel 2

# Every C test once per feature of the ring and per newer operation, hidden and refused: half an hour or more.
test-masks:
	$(call build,test)
	tests/masks.sh $(BUILD)

# On other kernels, in virtual machines: an hour and more. KERNELS="6.1 newest" to choose.
test-kernels:
	$(call build,build,--target upcall_cargo)
	tests/kernels/run.sh $(BUILD) $(KERNELS)

# Every C test in every environment of tests/denied/denied.c: half an hour. ENVIRONMENTS="kill nproc-1" to choose; MACHINE=1
# where no other program needs io_uring meanwhile: then also under kernel.io_uring_disabled, which is the whole machine's.
test-denied:
	$(call build,test)
	tests/denied/run.sh $(BUILD) $(ENVIRONMENTS)

# Every C test under Valgrind's memcheck, on both backends: an hour or more. TESTS="op_file reader" to choose.
test-valgrind:
	$(call build,valgrind)
	tests/sanitizers/valgrind.sh $(BUILD) $(TESTS)

# Every call of the library to the C library fails in every way it can, in every scenario: half an hour or more.
test-torture:
	$(call build,test,--target torture)
	$(BUILD)/tests/torture --jobs 2

# Every model of the protocols between threads, more random programs, and that each of them notices mutants of the code; then
# what needs no kernel under Miri, where the nightly toolchain has it. An hour or so. PROPTEST_CASES=100000 for more programs.
MODELS = build/models
test-models:
	RUSTFLAGS="--cfg loom" cargo test --locked --target-dir $(MODELS)/loom --profile models --lib models:: -- --include-ignored
	PROPTEST_CASES=$(or $(PROPTEST_CASES),20000) cargo test --locked --target-dir $(MODELS)/property --profile models --lib property::
	tests/models/mutants.py $(MODELS)
	tests/models/miri.sh $(MODELS)/miri || test $$? = 77

# Calls made from random bytes, under sanitizers, for an hour or FUZZ_SECONDS. What is found stands in build/fuzz.
FUZZ_SECONDS ?= 3600
fuzz:
	tools/setup.sh test
	tests/fuzz/build.sh build/fuzz
	mkdir -p build/fuzz/found
	nice build/fuzz/boundary -max_total_time=$(FUZZ_SECONDS) -len_control=0 -max_len=1024 -timeout=60 -print_final_stats=1 --report \
		-artifact_prefix=$(CURDIR)/build/fuzz/ $(CURDIR)/build/fuzz/found $(CURDIR)/tests/fuzz/corpus

# Ten million races of cancel and completion for each kind of wait, and the other races for a minute each: some hours.
RACES ?= 10000000
test-races:
	$(call build,test)
	tests/races/run.sh $(BUILD) $(RACES)

# Everything at once, for an hour on each backend: SOAK_SECONDS=600 for ten minutes.
SOAK_SECONDS ?= 3600
soak:
	$(call build,test,--target soak)
	$(BUILD)/tests/soak --backend io_uring --seconds $(SOAK_SECONDS)
	$(BUILD)/tests/soak --backend epoll --seconds $(SOAK_SECONDS)

# Every pair in turns, about twelve minutes on a machine that has nothing else to do; writes docs/bench and the tables of
# docs/performance.md. ONLY="nop read" for some of it; bench-quick writes nothing and proves nothing about speed.
bench bench-quick:
	$(call build,bench,--target upcall_bench)
	bench/run.py --build $(BUILD) --only "$(ONLY)" $(if $(findstring quick,$@),--quick,--out docs/bench)

# Upcall alone: allocations and system calls in the steady state, an idle loop, the read-ahead reader.
bench-steady:
	$(call build,bench,--target upcall_bench)
	UPCALL_BACKEND=io_uring $(BUILD)/bench/steady_bench
	UPCALL_BACKEND=epoll $(BUILD)/bench/steady_bench
	UPCALL_BACKEND=io_uring $(BUILD)/bench/reader_bench
	UPCALL_BACKEND=epoll $(BUILD)/bench/reader_bench

# The manual as a site.
manual docs:
	$(call build,manual,--target upcall_manual)
	@echo "see $(BUILD)/manual/html/index.html"

clean:
	rm -rf build target
