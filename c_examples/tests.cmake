# The examples' tests. upcall_add_example_test(<name> COMMAND ...) registers the command once per backend, chosen by the
# environment variable UPCALL_BACKEND. Exit status 77 means that this machine denies the backend.

find_program(UPCALL_BASH bash REQUIRED)

upcall_add_example_test(connect COMMAND $<TARGET_FILE:connect>)
upcall_add_example_test(happy_eyeballs COMMAND $<TARGET_FILE:happy_eyeballs> --self-test)
upcall_add_example_test(embed COMMAND $<TARGET_FILE:embed>)
upcall_add_example_test(echo
    COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_echo.sh
            $<TARGET_FILE:echo_server> $<TARGET_FILE:echo_client>)
upcall_add_example_test(tcp_proxy
    COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_tcp_proxy.sh
            $<TARGET_FILE:tcp_proxy> $<TARGET_FILE:echo_server> $<TARGET_FILE:echo_client> $<TARGET_FILE:workers>)
upcall_add_example_test(cp COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_cp.sh $<TARGET_FILE:cp>)
upcall_add_example_test(reap COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_reap.sh $<TARGET_FILE:reap>)
upcall_add_example_test(workers
    COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_workers.sh $<TARGET_FILE:workers>)
upcall_add_example_test(reader COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_reader.sh $<TARGET_FILE:reader>)
upcall_add_example_test(supervisor
    COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_supervisor.sh $<TARGET_FILE:supervisor>)
upcall_add_example_test(info
    COMMAND ${UPCALL_BASH} ${CMAKE_CURRENT_LIST_DIR}/test_info.sh $<TARGET_FILE:info> ${upcall_INCLUDE_DIR}/upcall.h)
